"""The Faust app of a worker role, and how a worker runs: waits for its broker, serves, ends within its time."""

import asyncio
import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import faust
import structlog
from confluent_kafka import KafkaException
from faust.app.base import BootStrategy

from model_core.errors import HeadwaterError
from model_core.records import Cause
from streams.agents.catalogue import CatalogueFeed
from streams.agents.personalize import add_agent, source_chunks
from streams.assignor import EvenAssignor
from streams.clients import BrokerRefusedError, ask
from streams.follower import Follower
from streams.metrics import Metrics
from streams.models import ModelFeed
from streams.ownership import Ownership
from streams.ports import Engine
from streams.settings import StreamSettings
from streams.task import Identity
from streams.tasks import ROLE, TaskOwnership, Work
from streams.topics import kept
from streams.transport.batches import BatchTransport
from streams.transport.reader import Unpack
from streams.web.server import WebServer
from streams.web.watch import watched

__all__ = ["BatchSchema", "create_app", "run_worker", "serve", "wait_for_broker"]

_AWAY_POLL_S: Final = 2.0
_ASK_S: Final = 3.0
_log = structlog.get_logger()


class BatchSchema(faust.Schema):  # type: ignore[misc]
    """Hands a fetched batch to the agent as it is: decoding is the engine's affair."""

    def loads_key(self, app: Any, message: Any, **_: Any) -> None:  # noqa: ARG002 - Faust's signature
        """A batch has no key."""
        return

    def loads_value(self, app: Any, message: Any, **_: Any) -> Any:  # noqa: ARG002 - Faust's signature
        """What was fetched, itself."""
        return message.value


class _Boot(BootStrategy):  # type: ignore[misc]
    """What a Headwater app starts: no web server and no producer of Faust's."""

    enable_web = False
    enable_kafka_producer = False


class _App(faust.App):  # type: ignore[misc]
    BootStrategy = _Boot
    headwater_settings: StreamSettings
    headwater_unpack: Unpack

    def _new_transport(self) -> BatchTransport:
        return BatchTransport(self.headwater_settings, self.headwater_unpack, self.conf.broker_consumer, self)

    @property
    def fetcher(self) -> Any:
        """The service that asks the consumer for records."""
        return self._fetcher

    @property
    def crashed(self) -> Any:
        """Set once the app has failed."""
        return self._crashed

    def _create_directories(self) -> None:
        """Faust keeps nothing on disk here."""

    def _new_producer_transport(self) -> BatchTransport:
        return BatchTransport(self.headwater_settings, self.headwater_unpack, self.conf.broker_producer, self)


def create_app(
    settings: StreamSettings,
    role: str,
    ownership: Callable[..., Ownership],
    unpack: Unpack,
    *,
    origin: str = "streams",
    standby_replicas: int = 0,
) -> Any:
    """The Faust app of a role: batches for messages, partitions owned by `ownership`, Faust's own commits off.

    Args:
        settings: of the broker and the names.
        role: `personalize` or `train`; the consumer group is named after it.
        ownership: makes the `Ownership` from the app and Faust's keyword arguments.
        unpack: makes records of what was fetched.
        origin: package of the app.
        standby_replicas: other workers that keep a copy of each partition.
    """
    app = _App(
        settings.group(role),
        broker=[f"kafka://{broker}" for broker in settings.brokers],
        origin=origin,
        autodiscover=False,
        TableManager=ownership,
        PartitionAssignor=EvenAssignor,
        table_standby_replicas=standby_replicas,
        datadir=settings.data_dir / "faust",
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        stream_wait_empty=False,
        stream_buffer_maxsize=64,
        broker_session_timeout=settings.session_timeout_ms / 1_000,
        broker_request_timeout=settings.session_timeout_ms / 1_000 + 10,
        broker_commit_interval=3_600.0,
        key_serializer="raw",
        value_serializer="raw",
    )
    app.headwater_settings = settings
    app.headwater_unpack = unpack
    return app


async def wait_for_broker(settings: StreamSettings, stop: asyncio.Event) -> bool:
    """Wait until a broker answers; False where `stop` came first.

    Raises:
        BrokerRefusedError: one answers, and turns this client away.
    """
    said = False
    while not stop.is_set():
        try:
            await asyncio.to_thread(ask, settings, _ASK_S)
        except KafkaException as error:
            if not said:
                _log.warning("broker-away", brokers=settings.brokers, error=str(error), does="waiting for it")
                said = True
        else:
            if said:
                _log.info("broker-back", brokers=settings.brokers)
            return True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _AWAY_POLL_S)
    return False


async def serve(app: Any, stop: asyncio.Event, *, stop_timeout_ms: int) -> bool:
    """Run a Faust app until `stop`, or until it fails.

    Returns:
        whether it ended because it was told to, and in time. An app that did not end in time has left nothing
        undone, but threads: the process should exit at once.
    """
    await app.start()
    stopping = asyncio.ensure_future(stop.wait())
    crashed = asyncio.ensure_future(app.crashed.wait())
    await asyncio.wait([stopping, crashed], return_when=asyncio.FIRST_COMPLETED)
    failed = app.crashed.is_set()
    stopping.cancel()
    crashed.cancel()
    if failed:
        _log.error("worker-failed", error=repr(app.crash_reason), exc_info=app.crash_reason)
    try:
        await asyncio.wait_for(app.stop(), stop_timeout_ms / 1_000)
    except TimeoutError:
        _log.warning("stop-timed-out", stop_timeout_ms=stop_timeout_ms)
        os._exit(1 if failed else 0)
    except Exception as error:  # noqa: BLE001 - whatever it is, threads must not keep the process
        _log.error("stop-failed", error=str(error), exc_info=error)
        os._exit(1)
    return not failed


def run_worker(
    settings: StreamSettings,
    engine_factory: Callable[[], Engine],
    *,
    configuration: str,
    seed: int,
    refresh_active_ms: int = 600_000,
    model_name: str | None = None,
    ready: Callable[[WebServer | None], None] | None = None,
) -> int:
    """Run a personalize worker in the foreground until SIGTERM or SIGINT.

    Args:
        settings: of the worker.
        engine_factory: makes the engine, with an empty catalogue and its first model.
        configuration: hash of all settings that shape the result, for `steps` records.
        seed: of all randomness, for `steps` records.
        refresh_active_ms: users active within this get a fresh slate when a new model arrives.
        model_name: of the models that serve; None for any.
        ready: is called once, when partitions are served for the first time.

    Returns:
        the process's exit code: 0 ended as told, 1 failed.

    Raises:
        BrokerRefusedError: the broker turned the worker away at its start.
    """
    settings.check()
    worker = _Worker(settings, engine_factory(), configuration, seed, refresh_active_ms, model_name, ready)
    try:
        return asyncio.run(worker.run())
    except BrokerRefusedError:
        raise
    except (HeadwaterError, KafkaException) as error:
        _log.error("worker-failed", error=str(error))
        return 1


class _Worker:
    """A personalize worker: followers, app, web."""

    def __init__(
        self,
        settings: StreamSettings,
        engine: Engine,
        configuration: str,
        seed: int,
        refresh_active_ms: int,
        model_name: str | None,
        ready: Callable[[WebServer | None], None] | None,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._metrics = Metrics()
        self._ready = ready
        self._compute = ThreadPoolExecutor(1, "compute")
        self._commits = ThreadPoolExecutor(max(8, settings.partitions), "commit")
        self._catalogue = CatalogueFeed(engine.catalogue, self._metrics)
        self._models = ModelFeed(self._swap, self._metrics, name=model_name)
        identity = Identity(configuration, seed, self._catalogue.offsets)
        self._work = Work(
            settings,
            engine,
            identity,
            self._metrics,
            refresh_active_ms,
            self._compute,
            self._commits,
            lambda: int(time.time() * 1_000),
        )
        self._app: Any = None
        self._loop: asyncio.AbstractEventLoop
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Run until told to stop."""
        loop = self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        try:
            async with watched(self._settings, self._metrics.registry, self._unready) as web:
                return await self._run(web)
        finally:
            self._compute.shutdown(wait=False, cancel_futures=True)
            self._commits.shutdown(wait=False, cancel_futures=True)

    async def _run(self, web: WebServer | None) -> int:
        if not await wait_for_broker(self._settings, self._stop):
            return 0
        for one in await asyncio.to_thread(kept, self._settings):
            if one.advice is not None:
                _log.warning("kept-too-long", topic=one.name, error=one.advice)
        self._metrics.model(self._engine.model.version)
        app = self._app = create_app(
            self._settings,
            ROLE,
            functools.partial(TaskOwnership, work=self._work),
            source_chunks(self._settings),
            standby_replicas=self._settings.standby_replicas,
        )
        add_agent(app, self._settings, app.tables, BatchSchema())
        followers = [
            Follower(self._settings, "items", self._change_catalogue, self._failed),
            Follower(self._settings, "models", self._models.apply, self._failed),
        ]
        for follower in followers:
            follower.start()
        try:
            if not await self._caught_up(followers):
                return 1 if app.crashed.is_set() else 0
            announce = asyncio.ensure_future(self._announce(web))
            ended = await serve(app, self._stop, stop_timeout_ms=self._settings.stop_timeout_ms)
            announce.cancel()
        finally:
            for follower in followers:
                follower.stop()
        _log.info("worker-ended", clean=ended)
        return 0 if ended else 1

    async def _caught_up(self, followers: list[Follower]) -> bool:
        waits = (
            asyncio.ensure_future(self._stop.wait()),
            asyncio.ensure_future(self._app.crashed.wait()),
            asyncio.ensure_future(asyncio.to_thread(lambda: all(follower.caught_up.wait() for follower in followers))),
        )
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return not self._stop.is_set() and not self._app.crashed.is_set()

    async def _announce(self, web: WebServer | None) -> None:
        await self._app.tables.serving.wait()
        _log.info("worker-ready", web=None if web is None else web.address)
        if self._ready is not None:
            self._ready(web)

    def _change_catalogue(self, messages: Any) -> None:
        self._compute.submit(self._catalogue.apply, messages).result()

    def _swap(self, model: Any, cause: Cause) -> None:
        self._compute.submit(setattr, self._engine, "model", model).result()
        self._loop.call_soon_threadsafe(self._app.tables.model_swapped, cause)

    def _failed(self, error: BaseException) -> None:
        asyncio.run_coroutine_threadsafe(self._app.crash(error), self._loop)

    def _unready(self) -> list[str]:
        serving = self._app is not None and self._app.tables.serving.is_set()
        return [] if serving else ["partitions are not open yet"]
