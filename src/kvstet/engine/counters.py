"""What the engine counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvstet.cache.cache import Cache
from kvstet.engine.anticipation import Anticipator
from kvstet.engine.batching import Work
from kvstet.engine.job import Job
from kvstet.engine.messages import Stats
from kvstet.types import Reuse


@dataclass(slots=True)
class Counters:
    """Totals since the engine started."""

    num_requests: int = 0
    num_reused_tokens: int = 0
    num_loaded_tokens: int = 0
    num_shifted_tokens: int = 0
    num_computed_tokens: int = 0
    num_generated_tokens: int = 0
    num_preemptions: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    def add_reuse(self, reuse: Reuse) -> None:
        self.num_reused_tokens += reuse.num_reused_tokens
        self.num_loaded_tokens += reuse.num_loaded_tokens
        self.num_shifted_tokens += reuse.num_shifted_tokens

    def add_step(self, work: Work, seconds: float) -> None:
        """Split a step's time between prompts and replies by their tokens."""
        num_reply_tokens = sum(segment.is_reply for segment in work.segments)
        num_tokens = len(work.batch.tokens)
        self.num_computed_tokens += num_tokens - num_reply_tokens
        self.decode_seconds += seconds * num_reply_tokens / num_tokens
        self.prefill_seconds += seconds * (num_tokens - num_reply_tokens) / num_tokens

    def stats(
        self,
        waiting: Sequence[Job],
        running: Sequence[Job],
        cache: Cache,
        num_parked: int,
        anticipator: Anticipator,
    ) -> Stats:
        disk = cache.archive.disk if cache.archive else None
        return Stats(
            num_requests=self.num_requests,
            num_running=len(running),
            num_waiting=len(waiting),
            num_reused_tokens=self.num_reused_tokens,
            num_loaded_tokens=self.num_loaded_tokens,
            num_shifted_tokens=self.num_shifted_tokens,
            num_computed_tokens=self.num_computed_tokens,
            num_generated_tokens=self.num_generated_tokens,
            prefill_seconds=self.prefill_seconds,
            decode_seconds=self.decode_seconds,
            num_nodes=cache.tree.num_nodes,
            num_live_cells=cache.num_live_cells,
            num_parked_branches=num_parked,
            ram_bytes=cache.tier.used_bytes,
            num_evicted_blobs=cache.num_evicted_blobs,
            num_preemptions=self.num_preemptions,
            disk_bytes=disk.used_bytes if disk else 0,
            num_unwritten_blobs=cache.num_unwritten_blobs,
            num_written_bytes=disk.num_written_bytes if disk else 0,
            num_damaged_blobs=disk.num_damaged if disk else 0,
            num_predicted_tokens=anticipator.num_tokens,
            num_predicted_tokens_used=anticipator.num_used_tokens,
            num_predicted_tokens_wasted=anticipator.num_wasted_tokens,
        )
