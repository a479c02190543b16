"""What a compiled program takes of a device's memory, as XLA states it."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demand:
    """Bytes on each of the program's devices."""

    arguments: int
    outputs: int
    aliased: int  # of the outputs, where donated arguments lay
    scratch: int
    code: int  # for as long as the program is loaded; a CPU's is not told

    @classmethod
    def of(cls, program: Any) -> "Demand":
        """Of a jax.stages.Compiled."""
        told = program.memory_analysis()
        return cls(
            arguments=told.argument_size_in_bytes,
            outputs=told.output_size_in_bytes,
            aliased=told.alias_size_in_bytes,
            scratch=told.temp_size_in_bytes,
            code=told.generated_code_size_in_bytes,
        )

    @property
    def fresh(self) -> int:
        """What a call takes beside its arguments: scratch, and results that lie nowhere yet."""
        return self.scratch + self.outputs - self.aliased

    @property
    def whole(self) -> int:
        """What must be there for a call, its arguments too."""
        return self.arguments + self.fresh
