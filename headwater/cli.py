"""The `headwater` command. Each command is imported when it is called, so that `--help` answers at once.

Exit codes: 0 done, 1 failed, 2 wrong usage or setting, 3 the broker cannot be reached, 4 a check did not hold.
"""

import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast, get_args

import click

from model_core.config import Algorithm, Depth, EncoderKind, LearnerSettings, Objective
from model_core.errors import HeadwaterError, SettingsError

if TYPE_CHECKING:
    from headwater.settings import Loaded

__all__ = ["main"]

_GC_OBJECTS = 200_000
"""New objects that may be there before a look for cycles: more than a batch makes."""
FAILED, USAGE, BROKER_AWAY, CHECK_FAILED = 1, 2, 3, 4

_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, last on stdout.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="headwater")
@click.option("--config", type=click.Path(path_type=Path), help="Settings file; headwater.toml where it is there.")
@click.option("--set", "settings", multiple=True, metavar="GROUP.KEY=VALUE", help="A setting; may be repeated.")
@click.pass_context
def cli(context: click.Context, /, config: Path | None, settings: tuple[str, ...]) -> None:
    """Recommendations that learn from your Kafka topics while the clicks arrive.

    Settings come from headwater.toml, then HEADWATER_… environment variables, then --set.
    """
    options = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise click.UsageError(f"--set {setting}: expected GROUP.KEY=VALUE")
        options[name] = value
    context.obj = (config, options)


def _load(context: click.Context, **more: Any) -> "Loaded":
    from headwater import logs  # noqa: PLC0415 - `--help` answers at once
    from headwater.settings import load  # noqa: PLC0415

    config, options = context.obj
    loaded = load({**options, **more}, file=config)
    logs.configure(loaded.settings.general.log_level)
    return loaded


def _prepare_to_compute() -> None:
    """Set the process up for batches of small matrices and many short-lived objects; call it before numpy is imported.

    The matrices are small: threads of the BLAS cost more than they bring. A batch makes some hundred thousand
    objects that hold no cycles; at Python's own threshold, looking for cycles among them took 40 % of its time.
    """
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    gc.set_threshold(_GC_OBJECTS, 20, 100)


def _print(value: Any) -> None:
    import msgspec  # noqa: PLC0415 - `--help` answers at once

    click.echo(msgspec.json.encode(value).decode())


@cli.command()
@click.option("--seconds", default=120.0, show_default=True, help="Wall time; the people get a third of it at least.")
@click.option("--broker", default="embedded", show_default=True, metavar="embedded|HOST:PORT", help="Where to run it.")
@click.option("--seed", default=1, show_default=True, help="Of the people and of all draws.")
@click.option(
    "--learner",
    type=click.Choice(get_args(Algorithm)),
    default=LearnerSettings().algorithm,
    show_default=True,
    help="What the trainer learns by.",
)
@click.option("--no-trainer", is_flag=True, help="Leave the trainer out, to see what it brings.")
@click.option("--rounds", default=400, show_default=True, help="End after so many slates for everybody.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder to keep the workers' logs and state in.")
@_JSON
@click.pass_context
def demo(context: click.Context, /, *, as_json: bool, no_trainer: bool, **options: Any) -> None:
    """The whole loop on real data: ratings of real people, an embedded broker, workers, a trainer."""
    from rich.console import Console  # noqa: PLC0415 - `--help` answers at once

    from headwater.demo import Demo, DemoOptions  # noqa: PLC0415
    from headwater.view import LiveView, summary  # noqa: PLC0415

    _load(context, **{"general.log_level": "warning"})
    console = Console(stderr=as_json)
    with LiveView(console) as view:
        result = Demo(DemoOptions(trainer=not no_trainer, **options), view.show).run()
    if as_json:
        _print(result)
    else:
        console.print(summary(result))


@cli.command()
@click.option("--port", default=9092, show_default=True, help="To listen on, on loopback.")
@click.option("--data-dir", type=click.Path(path_type=Path), default=Path(".headwater/broker"), show_default=True)
def broker(port: int, data_dir: Path) -> None:
    """The embedded broker alone, in the foreground, until Ctrl-C."""
    import signal  # noqa: PLC0415 - `--help` answers at once

    from headwater.broker import EmbeddedBroker  # noqa: PLC0415

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with EmbeddedBroker(data_dir, port=port) as running:
        click.echo(f"listening on {running.address}; data in {data_dir}", err=True)
        try:
            raise SystemExit(running.wait())
        except KeyboardInterrupt:
            click.echo("ended", err=True)


@cli.group()
def topics() -> None:
    """The topics."""


@topics.command("create")
@click.option("--partitions", type=click.IntRange(min=1), help="Of impressions, clicks, users and what follows them.")
@_JSON
@click.pass_context
def topics_create(context: click.Context, /, *, partitions: int | None, as_json: bool) -> None:
    """Declare every topic with its right clean-up policy; safe to repeat."""
    from headwater.reading import require_broker  # noqa: PLC0415 - `--help` answers at once
    from streams.topics import declare  # noqa: PLC0415

    settings = _load(context, **{"streams.partitions": partitions}).settings
    require_broker(settings.streams, settings.general.broker_wait_s)
    declared = declare(settings.streams)
    if as_json:
        _print({"topics": [one._asdict() for one in declared]})
    for one in () if as_json else declared:
        click.echo(" ".join(filter(None, one)))
    if any(one.outcome in ("differs", "keeps longer") for one in declared):
        raise SystemExit(CHECK_FAILED)


@cli.command()
@click.option("--sample", default=10_000, show_default=True, help="Records of each topic to look at, the latest.")
@_JSON
@click.pass_context
def check(context: click.Context, /, *, sample: int, as_json: bool) -> None:
    """Read what the topics hold, commit nothing: what maps, what is refused and why, what can be joined."""
    from headwater.check import check_topics, described  # noqa: PLC0415 - `--help` answers at once
    from headwater.reading import require_broker  # noqa: PLC0415

    settings = _load(context).settings
    require_broker(settings.streams, settings.general.broker_wait_s)
    found = check_topics(settings, sample)
    _print(found) if as_json else click.echo(described(found))
    if not found.usable:
        raise SystemExit(CHECK_FAILED)


@cli.command()
@click.argument("role", type=click.Choice(["personalize", "train"]))
@click.pass_context
def worker(context: click.Context, /, role: str) -> None:
    """One role in the foreground, until SIGTERM or Ctrl-C; several processes share the partitions."""
    _prepare_to_compute()
    from headwater import workers  # noqa: PLC0415 - after the threads are set

    settings = _load(context).settings
    raise SystemExit(workers.personalize(settings) if role == "personalize" else workers.train(settings))


@cli.command()
@click.argument("feed", metavar="FEED")
@click.option("--rate", type=float, help="Records a second.")
@click.option("--speed-up", type=float, help="Follow the log's own times, this much faster.")
@click.option("--progress", type=click.Path(path_type=Path), help="File that makes the publication resumable.")
@click.option("--heartbeat-ms", default=10_000, show_default=True, help="Event time between heartbeats; 0 for none.")
@click.option("--closing-ms", default=0, show_default=True, help="How far the last heartbeats move event time on.")
@click.option("--seed", default=1, show_default=True, help="Of the simulator.")
@_JSON
@click.pass_context
def produce(context: click.Context, /, feed: str, *, as_json: bool, **options: Any) -> None:
    """Publish FEED: a JSONL file or folder, open-bandit[:random|bts[/all|men|women]], movielens, or simulate."""
    from headwater.produce import produce as run  # noqa: PLC0415 - `--help` answers at once

    if options["rate"] and options["speed_up"]:
        raise click.UsageError("--rate and --speed-up: expected one of them")
    published = run(_load(context).settings, feed, **options)
    if as_json:
        _print(published)
    else:
        click.echo(f"{sum(published.records.values()):,} records in {published.seconds:.1f} s: {published.records}")


@cli.command()
@click.argument("source", metavar="SOURCE")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for what comes out.")
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="Files from `inspect model --out`.")
@click.option("--batch", default=1_000, show_default=True, type=click.IntRange(min=1), help="Records of a batch.")
@click.option("--closing-ms", type=int, help="Event time past the last record; else what settles everything.")
@click.option("--seed", default=1, show_default=True, help="Of the simulator.")
@click.option(
    "--slates",
    type=click.Choice(["each", "last"]),
    default="each",
    show_default=True,
    help="Of files: one for each user in a batch, or a user's last one, which is faster.",
)
@click.option("--no-transitions", is_flag=True, help="With --slates last: states and slates alone.")
@click.option(
    "--verify", is_flag=True, help="Repeat the workers' own steps, and compare bit for bit; 4 where they differ."
)
@click.option("--compare", is_flag=True, help="Say what it would change of the live state, and for how many users.")
@click.option("--publish", is_flag=True, help="Put the state where workers go live from it; only where there is none.")
@click.option("--replace", is_flag=True, help="With --publish: in place of the live state. Stop the workers first.")
@_JSON
@click.pass_context
def replay(
    context: click.Context,
    /,
    source: str,
    out: Path,
    *,
    verify: bool,
    compare: bool,
    publish: bool,
    replace: bool,
    slates: str,
    no_transitions: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Backfill SOURCE through the same engine: a feed, as of `produce`, or what the topics hold.

    kafka:FROM..TO takes what was logged from FROM to before TO, each of them beginning, end, milliseconds since 1970 or
    an ISO date. --verify needs kafka:beginning..end, --publish a kafka: source.
    """
    _prepare_to_compute()
    from headwater.replay import described  # noqa: PLC0415 - after the threads are set
    from headwater.replay import replay as run  # noqa: PLC0415

    settings = _load(context).settings
    if no_transitions and slates != "last":
        raise click.UsageError("--no-transitions: expected --slates last beside it")
    if source.startswith("kafka:"):
        if slates == "last":
            raise click.UsageError("--slates last: expected files")
        from headwater.from_topics import replay_topics  # noqa: PLC0415

        asked = {"verify": verify, "publish": publish, "compare": compare, "replace": replace}
        model, batch = options["model"], options["batch"]
        summary = replay_topics(settings, source, out, model=model, batch=batch, **asked)
    elif verify or publish or compare or replace:
        raise click.UsageError("--verify, --compare, --publish and --replace: expected a kafka: source")
    elif slates == "last":
        from headwater.whole_logs import replay_whole  # noqa: PLC0415

        summary = replay_whole(settings, source, out, transitions=not no_transitions, **options)
    else:
        summary = run(settings, source, out, **options)
    _print(summary) if as_json else click.echo(described(summary))
    if summary.same is False:
        raise SystemExit(CHECK_FAILED)


@cli.command()
@click.option("--data", required=True, metavar="FEED", help="movielens, a JSONL log, or another feed of `produce`.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the model's files; resumed.")
@click.option("--kind", type=click.Choice(get_args(EncoderKind)), help="Of the encoder; else encoder.kind.")
@click.option("--start", type=click.Path(path_type=Path, exists=True), help="Folder of a model to start from.")
@click.option("--other-catalogue", is_flag=True, help="Of --start take the words, not the ids: its items are others.")
@click.option("--fine-tune", type=click.Choice(get_args(Objective)), help="Afterwards, on what was shown.")
@click.option("--depth", type=click.Choice(get_args(Depth)), default="last", show_default=True, help="Fine-tuned.")
@click.option("--publish", is_flag=True, help="Put the model on the topic, as the next version.")
@click.option("--seed", default=1, show_default=True, help="Of weights and of all draws.")
@_JSON
@click.pass_context
def pretrain(context: click.Context, /, *, kind: str | None, as_json: bool, **options: Any) -> None:
    """Pretrain the sequence encoder on a log: the next item, or masked ones; a model as the trainer would make it.

    Under `torchrun -m headwater pretrain …` several processes share every epoch.
    """
    _prepare_to_compute()
    from headwater.pretrain import PretrainOptions, described  # noqa: PLC0415 - after the threads are set
    from headwater.pretrain import pretrain as run  # noqa: PLC0415

    settings = _load(context, **{"encoder.kind": kind}).settings
    found = run(settings, PretrainOptions(**options), show=lambda line: click.echo(line, err=True))
    if found is not None:
        _print(found) if as_json else click.echo(described(found))


@cli.command("benchmark-model")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", required=True, metavar="FEED", help="movielens, a JSONL log, or another feed of `produce`.")
@click.option("--test-share", default=0.1, show_default=True, help="Of the events, the latest: what is told.")
@click.option("--examples", default=2_000, show_default=True, type=click.IntRange(min=1), help="Of them, at most.")
@click.option("--seed", default=1, show_default=True, help="Of draws.")
@_JSON
@click.pass_context
def benchmark_model(context: click.Context, /, model: Path, *, as_json: bool, **options: Any) -> None:
    """How well the MODEL in a folder ranks what came next in a log, beside popularity and a Markov chain."""
    _prepare_to_compute()
    from headwater.benchmark_model import BenchmarkOptions, described  # noqa: PLC0415 - after the threads are set
    from headwater.benchmark_model import benchmark_model as run  # noqa: PLC0415

    found = run(_load(context).settings, BenchmarkOptions(model, **options))
    _print(found) if as_json else click.echo(described(found))


@cli.command()
@click.argument("where", type=click.Choice(["simulation", "traffic"]))
@click.option("--state", type=click.Path(path_type=Path), required=True, help="JSONL file of the search; goes on.")
@click.option("--method", type=click.Choice(["bayesian", "evolution", "random"]), help="Else as WHERE calls for.")
@click.option("--evaluations", default=200, show_default=True, help="Trials of a simulation, earlier ones included.")
@click.option("--at-once", default=2, show_default=True, help="Strategies to try in live traffic at a time.")
@click.option("--parameter", "parameters", multiple=True, metavar="NAME=LOW..HIGH[:log]", help="May be repeated.")
@click.option("--users", default=200, show_default=True, help="People of the simulation.")
@click.option("--rounds", default=6, show_default=True, help="Slates of each of them in a trial.")
@click.option("--seed", default=1, show_default=True, help="Of the search and the simulation.")
@_JSON
@click.pass_context
def tune(context: click.Context, /, where: str, state: Path, *, as_json: bool, **options: Any) -> None:
    """Search for better settings in a simulation, or for better strategies in live traffic.

    traffic reads the topic evaluations, maximises the lower end of the intervals, and names the strategies to serve
    next: put them into headwater.toml, restart the workers, and call again once the trainer has evaluated them.
    """
    _prepare_to_compute()
    from headwater import tune as tuning  # noqa: PLC0415 - after the threads are set

    settings = _load(context).settings
    seed = options["seed"]
    search = tuning.search_of(cast("tuning.Where", where), options["method"], seed, options["parameters"])
    found = tuning.State(state, search)
    try:
        if where == "traffic":
            tuned = tuning.tune_traffic(settings, found, options["at_once"])
        else:
            sizes = {name: options[name] for name in ("users", "rounds")}
            tuned = tuning.tune_simulation(
                lambda more: _load(context, **more).settings, found, options["evaluations"], **sizes
            )
    except ModuleNotFoundError as error:
        raise SettingsError(f"{error}; install headwater[tune]") from error
    _print(tuned) if as_json else click.echo(tuning.described(tuned))


@cli.group("dead-letters")
def dead_letters() -> None:
    """What was refused."""


@dead_letters.command("list")
@click.option("--reason", help="Only these.")
@click.option("--limit", default=20, show_default=True, help="How many to show, the latest.")
@_JSON
@click.pass_context
def dead_letters_list(context: click.Context, /, *, reason: str | None, limit: int, as_json: bool) -> None:
    """What was refused, why, and how often."""
    from headwater import dead  # noqa: PLC0415 - `--help` answers at once

    settings = _load(context).settings
    found = dead.listed(settings, reason=reason, limit=limit)
    _print(found) if as_json else click.echo(dead.described(found))


@dead_letters.command("replay")
@click.option("--reason", required=True, help="Only these.")
@_JSON
@click.pass_context
def dead_letters_replay(context: click.Context, /, *, reason: str, as_json: bool) -> None:
    """Send dead letters to the topics they came from, again; their `attempt` counts up if they fail again."""
    from headwater import dead  # noqa: PLC0415 - `--help` answers at once

    replayed = dead.replayed(_load(context).settings, reason=reason)
    _print({"replayed": replayed}) if as_json else click.echo(f"{replayed} records sent again")


@cli.group()
def inspect() -> None:
    """What the system knows, and why."""


@inspect.command("config")
@_JSON
@click.pass_context
def inspect_config(context: click.Context, /, *, as_json: bool) -> None:
    """Every setting, its value, and where it came from."""
    described = _load(context).described()
    if as_json:
        _print(described)
    for name, one in () if as_json else described.items():
        click.echo(f"{name} = {one['value']!r}  ({one['source']})")


@inspect.command("user")
@click.argument("user_id")
@_JSON
@click.pass_context
def inspect_user(context: click.Context, /, user_id: str, *, as_json: bool) -> None:
    """A user's record, read from the changelog."""
    from headwater import inspection  # noqa: PLC0415 - `--help` answers at once

    found = inspection.user(_load(context).settings, user_id)
    _print(found) if as_json else click.echo(inspection.described(found))


@inspect.command("join")
@click.argument("user_id")
@_JSON
@click.pass_context
def inspect_join(context: click.Context, /, user_id: str, *, as_json: bool) -> None:
    """A user's open impressions and waiting clicks, and when they are due."""
    from headwater import inspection  # noqa: PLC0415 - `--help` answers at once

    found = inspection.joined(_load(context).settings, user_id)
    _print(found) if as_json else click.echo(inspection.described(found))


@inspect.command("model")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write the newest model's files to.")
@_JSON
@click.pass_context
def inspect_model(context: click.Context, /, *, out: Path | None, as_json: bool) -> None:
    """The newest model: version, hash, metrics."""
    from headwater import inspection  # noqa: PLC0415 - `--help` answers at once

    found = inspection.model(_load(context).settings, out)
    _print(found) if as_json else click.echo(inspection.described(found))


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command; errors become one line and an exit code."""
    try:
        cli(args=arguments, standalone_mode=False, prog_name="headwater")
    except click.ClickException as error:
        error.show()
        sys.exit(USAGE)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(FAILED)
    except HeadwaterError as error:
        click.echo(f"headwater: {error}", err=True)
        sys.exit(_exit_code(error))
    sys.exit(0)


def _exit_code(error: HeadwaterError) -> int:
    if isinstance(error, SettingsError):
        return USAGE
    if type(error).__name__ in ("BrokerAwayError", "BrokerRefusedError", "BrokerUnavailableError"):
        return BROKER_AWAY
    return FAILED
