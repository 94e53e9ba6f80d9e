"""Settings of an adapter, and what an adapter records about itself."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """LoRA (arXiv 2106.09685): `config.lora` of an experiment; off without targets.

    The model of `config.init_from` is frozen, and each layer that `targets` names gets two trained matrices: its kernel
    becomes `kernel + alpha / rank * a @ b`, a [in, rank] and b [rank, out], where b starts at zero.

    Attributes:
      targets: the linear layers: names of `targets.PRESETS` ('language.attention', 'all-linear'), and patterns over the
        dotted paths of parameters, in which * stands for any characters ('flow_head.layers.mlp.*'). A pattern also
        matches everything below a path ('connector'). Empty: no adapter; all parameters are trained as
        `config.optimizer` says.
      rank: of the matrices, at least 1.
      alpha: factor of the product, divided by the rank.
      dropout: share of a layer's inputs that the product does not see in training, in [0, 1). The parts of a batch
        (`config.accumulate`) have the same places dropped.
      trained: prefixes of further parameters that are trained and stored whole, such as 'connector' or
        'flow_head.final'.
      base_dtype: dtype of the frozen parameters, 'float32' or 'bfloat16'; bfloat16 halves their memory.
    """

    targets: tuple[str, ...] = ()
    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    trained: tuple[str, ...] = ()
    base_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"config.lora.rank is {self.rank}; it must be at least 1")
        if not self.alpha > 0:
            raise ValueError(f"config.lora.alpha is {self.alpha}; it must be greater than 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f"config.lora.dropout is {self.dropout}; it must be at least 0 and less than 1"
            )
        if self.base_dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f"config.lora.base_dtype is {self.base_dtype!r}; choose 'float32' or 'bfloat16'"
            )
        if not self.targets:
            changed = [
                field.name
                for field in dataclasses.fields(self)
                if getattr(self, field.name) != field.default
            ]
            if changed:
                raise ValueError(
                    f"config.lora.{changed[0]} is given, and config.lora.targets names no layers; set it, for example "
                    f"config.lora.targets=('language.attention',)"
                )

    @property
    def scale(self) -> float:
        """The factor of the product `a @ b`."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """What an adapter is, in the record of its run.

    Attributes:
      rank, alpha: of its matrices; their product has the factor alpha / rank.
      base: the model that it was trained on: a path, or the name of a model in the package.
      digest: of that model's parameters (`digest.py`); '': unknown.
    """

    rank: int
    alpha: float
    base: str = ""
    digest: str = ""

    @property
    def scale(self) -> float:
        """The factor of the product `a @ b`."""
        return self.alpha / self.rank
