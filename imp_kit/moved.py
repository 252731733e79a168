"""Where modules of earlier versions are now, for notebooks and posts that import them by their old names.

The modules are found; a few names within them are others today, as CHANGELOG.md says.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any, cast

# Old names that a reader may hold; importing one gives the module of today.
MOVED = {
    "imp_kit.assistant": "imp_kit.imp",
    "imp_kit.bench": "imp_kit.tools.bench",
    "imp_kit.cli": "imp_kit.tools.cli",
    "imp_kit.doctor": "imp_kit.tools.doctor",
    "imp_kit.experiments.loading": "imp_kit.experiments.transformers_matrix.measure",
    "imp_kit.experiments.reading": "imp_kit.experiments.captcha.probe",
    "imp_kit.experiments.record": "imp_kit.experiments.runs",
    "imp_kit.experiments.tokenized": "imp_kit.experiments.japanese.tokenized",
    "imp_kit.fitting": "imp_kit.checkpoints.plan",
    "imp_kit.inspection": "imp_kit.checkpoints.inspect",
    "imp_kit.machine": "imp_kit.device",
    "imp_kit.nano.draw": "imp_kit.experiments.drawings",
    "imp_kit.official": "imp_kit.tools.official",
    "imp_kit.registry": "imp_kit.checkpoints.registry",
    "imp_kit.tokens": "imp_kit.checkpoints.tokenizer",
}
# Inner parts, whose names changed with their places.
GONE = {
    "imp_kit.batches": "imp_kit.engine",
    "imp_kit.config_json": "imp_kit.checkpoints.config",
    "imp_kit.cpu_meter": "imp_kit.system.cpu_meter",
    "imp_kit.experiments.loading_calls": "imp_kit.experiments.transformers_matrix.calls",
    "imp_kit.extras": "imp_kit.system.extras",
    "imp_kit.interrupts": "imp_kit.system.interrupts",
    "imp_kit.layouts": "imp_kit.checkpoints.key_maps",
    "imp_kit.linears": "imp_kit.model.packed_linear",
    "imp_kit.model.graph": "imp_kit.model.cuda_graph",
    "imp_kit.model.weights": "imp_kit.checkpoints.load",
    "imp_kit.nano.card": "imp_kit.nano.training.card",
    "imp_kit.nano.evaluate": "imp_kit.nano.training.evaluation",
    "imp_kit.nano.labels": "imp_kit.nano.training.labels",
    "imp_kit.nano.lessons": "imp_kit.nano.training.lessons",
    "imp_kit.nano.outside": "imp_kit.nano.training.outside",
    "imp_kit.nano.text": "imp_kit.nano.training.text",
    "imp_kit.nano.train": "imp_kit.nano.training.train",
    "imp_kit.picture_files": "imp_kit.image_files",
    "imp_kit.published": "imp_kit.checkpoints.published",
    "imp_kit.sampling": "imp_kit.settings",
    "imp_kit.stored": "imp_kit.checkpoints.files",
    "imp_kit.threads": "imp_kit.device",
    "imp_kit.tokenizer_files": "imp_kit.checkpoints.tokenizer_files",
}


class MovedModules:
    """Finds and loads the old names, after all other finders found nothing.

    By the import system's protocols alone: their classes (importlib.abc) would double the time of `import imp_kit`.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in GONE:
            where = " of the repository; the wheel has the checkpoint alone" if ".nano." in name else ""
            raise ModuleNotFoundError(f"{name} is {GONE[name]} now{where}; import that.", name=name)
        return ModuleSpec(name, cast(Any, self)) if name in MOVED else None

    def get_code(self, name: str) -> CodeType | None:
        """For `python -m`."""
        loader: Any = import_module(MOVED[name]).__loader__
        return loader.get_code(MOVED[name])

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """An empty one, until the module of today takes its place."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(MOVED[module.__name__])
