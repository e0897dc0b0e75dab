"""The trainer role: transitions and items in, models out; the one place where its parts are put together.

One trainer learns at a time. A second one of the same group takes over: it fences the first (transactional id),
which ends with an error at its next publication.
"""

import asyncio
import contextlib
import functools
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import structlog
from confluent_kafka import KafkaException

from model_core.config import EncoderSettings, EvaluationSettings, LearnerSettings, StrategySettings
from model_core.errors import HeadwaterError
from streams.agents.train import TrainOwnership, add_agent, transitions
from streams.app import BatchSchema, create_app, serve, wait_for_broker
from streams.clients import BrokerRefusedError
from streams.follower import Follower
from streams.settings import StreamSettings
from streams.topics import MODEL_VERSIONS, describe
from streams.training.messages import Start
from streams.training.metrics import TrainerMetrics
from streams.training.process import CHILD
from streams.training.publish import ROLE, ModelPublisher
from streams.training.service import TrainerService
from streams.training.settings import TrainerSettings
from streams.training.sink import BrokerAway
from streams.web.server import WebServer
from streams.web.watch import watched

__all__ = ["TrainerSettings", "run_trainer"]

_log = structlog.get_logger(__name__)
_APP_STOP_MS: Final = 2_000
_POLL_S: Final = 0.02


def run_trainer(
    settings: StreamSettings,
    learner: LearnerSettings,
    encoder: EncoderSettings,
    trainer: TrainerSettings,
    *,
    ready: Callable[[WebServer | None], None] | None = None,
    command: Sequence[str] = CHILD,
    strategies: StrategySettings | None = None,
    evaluation: EvaluationSettings | None = None,
) -> int:
    """Run the trainer in the foreground until SIGTERM or SIGINT.

    Args:
        settings: of the broker, the names and the data directory.
        learner: of Q-learning.
        encoder: of the features; a checkpoint of other ones is refused.
        trainer: of the schedule, the checkpoints and the child process.
        ready: is called once, when transitions are being read.
        command: of the child process.
        strategies: that share the traffic.
        evaluation: of policies off-policy.

    Returns:
        the process's exit code: 0 ended as told, 1 failed.

    Raises:
        BrokerRefusedError: the broker turned the trainer away at its start.
    """
    settings.check()
    trainer.check()
    role = _Trainer(
        settings,
        learner,
        encoder,
        trainer,
        ready,
        command,
        strategies or StrategySettings(),
        evaluation or EvaluationSettings(),
    )
    try:
        return asyncio.run(role.run())
    except BrokerRefusedError:
        raise
    except (HeadwaterError, KafkaException) as error:
        _log.error("trainer failed", error=str(error))
        return 1


class _Trainer:
    """Publisher, child, follower of items, app, web: started in this order, stopped in the reverse."""

    def __init__(
        self,
        settings: StreamSettings,
        learner: LearnerSettings,
        encoder: EncoderSettings,
        trainer: TrainerSettings,
        ready: Callable[[WebServer | None], None] | None,
        command: Sequence[str],
        strategies: StrategySettings,
        evaluation: EvaluationSettings,
    ) -> None:
        self._settings = settings
        self._learner = learner
        self._encoder = encoder
        self._trainer = trainer
        self._ready = ready
        self._command = command
        self._strategies = strategies
        self._evaluation = evaluation
        self._metrics = TrainerMetrics()
        self._stop = asyncio.Event()
        self._app: Any = None
        self._failure: BaseException | None = None

    async def run(self) -> int:
        """Run until told to stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        async with watched(self._settings, self._metrics.registry, self._unready) as web:
            if not await wait_for_broker(self._settings, self._stop):
                return 0
            return await self._run(web)

    async def _run(self, web: WebServer | None) -> int:
        publisher = await asyncio.to_thread(
            ModelPublisher.of, self._settings, "models", versions_kept=self._trainer.versions_kept
        )
        try:
            service = TrainerService(await self._start(publisher), publisher, self._metrics, command=self._command)
            checkpoint = await service.start()
            try:
                return await self._follow(service, checkpoint.offsets, web)
            finally:
                with contextlib.suppress(HeadwaterError):
                    await service.stop()
        finally:
            publisher.close()

    async def _start(self, publisher: ModelPublisher) -> Start:
        settings, trainer = self._settings, self._trainer
        source = settings.topic("transitions")
        written = [settings.topic(role) for role in ("models", MODEL_VERSIONS)]
        topics = await asyncio.to_thread(describe, settings, [source, *written])
        return Start(
            learner=self._learner,
            encoder=self._encoder,
            trainer=trainer,
            checkpoint_dir=self._checkpoint_dir(),
            source=f"{source}@{topics[source].id}",
            last_version=await self._last_version(publisher),
            strategies=self._strategies,
            evaluation=self._evaluation,
        )

    def _checkpoint_dir(self) -> str:
        return str(Path(self._trainer.checkpoint_dir or self._settings.data_dir / ROLE).absolute())

    async def _last_version(self, publisher: ModelPublisher) -> int:
        while True:
            try:
                return await asyncio.to_thread(publisher.open)
            except BrokerAway as error:
                if self._stop.is_set():
                    raise
                _log.warning("the broker is away; waiting for it", error=str(error))

    async def _follow(self, service: TrainerService, offsets: dict[int, int], web: WebServer | None) -> int:
        """Feed items and transitions until the stop; returns the exit code."""
        app = self._app = create_app(
            self._settings,
            ROLE,
            functools.partial(
                TrainOwnership,
                settings=self._settings,
                service=service,
                metrics=self._metrics,
                offsets=offsets,
            ),
            transitions,
        )
        add_agent(app, self._settings, app.tables, BatchSchema())
        loop = asyncio.get_running_loop()
        items = Follower(
            self._settings,
            "items",
            functools.partial(_set_items, service, loop),
            functools.partial(_call_soon, loop, self._fail),
        )
        watch = asyncio.create_task(self._watch(service))
        items.start()
        try:
            if not await self._caught_up(items):
                return self._code()
            ended = asyncio.Event()
            end = asyncio.create_task(self._end(service, ended))
            announce = asyncio.create_task(self._announce(web))
            clean = await serve(app, ended, stop_timeout_ms=_APP_STOP_MS)
            for task in (announce, end):
                task.cancel()
            return self._code() if clean else 1
        finally:
            watch.cancel()
            with contextlib.suppress(HeadwaterError):  # known from the watch
                await service.stop()
            await asyncio.to_thread(items.stop)

    async def _end(self, service: TrainerService, ended: asyncio.Event) -> None:
        """When told to stop: the child checkpoints first, for it needs the time; then the app ends."""
        await self._stop.wait()
        self._app.tables.revoked()
        try:
            await service.stop()
        except HeadwaterError as error:
            self._fail(error)
        ended.set()

    async def _watch(self, service: TrainerService) -> None:
        try:
            await service.failed()
        except HeadwaterError as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """End the role with this error: a restarted trainer is correct."""
        if self._failure is not None:
            return
        self._failure = error
        _log.error("trainer failed", error=str(error))
        self._stop.set()

    def _code(self) -> int:
        return 0 if self._failure is None else 1

    async def _caught_up(self, follower: Follower) -> bool:
        while not follower.caught_up.is_set():
            if self._stop.is_set():
                return False
            await asyncio.sleep(_POLL_S)
        return not self._stop.is_set()

    async def _announce(self, web: WebServer | None) -> None:
        while not self._app.tables.serving:  # noqa: ASYNC110 - Faust calls back at its own time
            await asyncio.sleep(_POLL_S)
        _log.info("trainer reads", web=None if web is None else web.address)
        if self._ready is not None:
            self._ready(web)

    def _unready(self) -> list[str]:
        serving = self._app is not None and self._app.tables.serving
        return [] if serving else ["transitions are not being read yet"]


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[BaseException], None], error: BaseException) -> None:
    loop.call_soon_threadsafe(call, error)


def _set_items(service: TrainerService, loop: asyncio.AbstractEventLoop, messages: Sequence[Any]) -> None:
    records = [((message.key() or b"").decode(errors="replace"), message.value()) for message in messages]
    asyncio.run_coroutine_threadsafe(service.set_items(records), loop).result()
