"""`models` into the engine: parts gathered, joined and verified; a bad model is refused and the old one serves on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import structlog

from model_core.errors import DecodeError, ModelError
from model_core.records import Cause, ModelManifest, decode_as
from streams.metrics import Metrics

__all__ = ["ModelFeed", "verified"]

_KEEP_MANIFESTS: Final = 8


def verified(manifest: ModelManifest, parts: list[bytes]) -> Any:
    """The model of a manifest and its parts.

    Raises:
        ModelError: hash, shapes, dtypes or finiteness do not hold.
    """
    from model_core import model_file  # noqa: PLC0415 - apps without models do not load it

    return model_file.unpack(manifest, parts)


class ModelFeed:
    """Applies records of `models`.

    Args:
        swap: is given a verified model and the record that completed it; swaps it in between two batches.
        metrics: of the worker.
        name: of the models that serve here; None for any.
        unpack: verifies and builds a model.
    """

    def __init__(
        self,
        swap: Callable[[Any, Cause], None],
        metrics: Metrics,
        *,
        name: str | None = None,
        unpack: Callable[[ModelManifest, list[bytes]], Any] = verified,
    ) -> None:
        self._swap = swap
        self._metrics = metrics
        self._name = name
        self._unpack = unpack
        self._parts: dict[tuple[str, int], dict[int, bytes]] = {}
        self._manifests: list[tuple[ModelManifest, Cause]] = []
        self._serving: tuple[str, int] | None = None
        self._log = structlog.get_logger()

    def apply(self, messages: Sequence[Any]) -> None:
        """Take records in; of the models they complete the newest good one is swapped in."""
        for message in messages:
            self._take(message)
        while self._manifests:
            manifest, cause = self._manifests.pop()
            if self._serve(manifest, cause):
                self._manifests.clear()
                self._forget_parts(manifest)

    def _take(self, message: Any) -> None:
        key, value = (message.key() or b"").decode(errors="replace"), message.value()
        name, *version = key.split("/")
        if value is None or (self._name is not None and name != self._name):
            return
        if len(version) == 2 and all(number.isdigit() for number in version):  # noqa: PLR2004 - name/version/part
            self._parts.setdefault((name, int(version[0])), {})[int(version[1])] = value
            return
        try:
            manifest = decode_as(ModelManifest, value)
        except DecodeError as error:
            self._refuse(key, None, str(error))
            return
        cause = Cause(topic="models", partition=message.partition(), offset=message.offset())
        self._manifests = [*self._manifests[-_KEEP_MANIFESTS:], (manifest, cause)]

    def _serve(self, manifest: ModelManifest, cause: Cause) -> bool:
        found = self._parts.get((manifest.name, manifest.version), {})
        try:
            model = self._unpack(manifest, _whole(manifest, found))
            new = (manifest.name, manifest.version) != self._serving
            if new:
                self._swap(model, cause)
        except ModelError as error:
            self._refuse(manifest.name, manifest.version, str(error))
            return False
        if new:
            self._serving = (manifest.name, manifest.version)
            self._metrics.model(manifest.version)
            self._log.info("model-swapped", name=manifest.name, version=manifest.version)
        return True

    def _refuse(self, name: str, version: int | None, error: str) -> None:
        self._metrics.models_refused.inc()
        self._log.error("model-refused", name=name, version=version, error=error)

    def _forget_parts(self, served: ModelManifest) -> None:
        self._parts = {
            of: parts for of, parts in self._parts.items() if of[0] == served.name and of[1] > served.version
        }


def _whole(manifest: ModelManifest, found: Mapping[int, bytes]) -> list[bytes]:
    if manifest.parts > len(found):  # Before it is counted out: a manifest may say anything.
        raise ModelError(f"{len(found)} of {manifest.parts} parts are there")
    missing = [part for part in range(manifest.parts) if part not in found]
    if missing:
        raise ModelError(f"parts {missing} of {manifest.parts} are not there")
    return [found[part] for part in range(manifest.parts)]
