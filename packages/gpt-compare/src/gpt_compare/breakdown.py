"""Where a step's time goes: the kernels of a framework's own profile, put into classes by one list of names.

torch writes Chrome's trace format, JAX the same below ``plugins/profile``. On a GPU the kernels count; on a
CPU the operations, each without those that it calls.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

MOST_NAMES = 400
"""Names that are kept, the longest in all first; the rest of a profile is one sum."""
REST = "rest"
IDLE = "idle"
# the first that is found decides; behind a name may stand what its framework says of its place in the program
CLASSES: dict[str, re.Pattern[str]] = {
    name: re.compile(pattern, re.IGNORECASE)
    for name, pattern in {
        "communication": r"nccl|all[-_]?reduce|all[-_]?gather|reduce[-_]?scatter|collective|c10d",
        "optimizer": r"adam|muon|newton|momentum|stack_product|normalise|optimizer\.py|multi_tensor|_foreach"
        r"|squares_kernel|root_of_sum|vector_norm|clip_grad|global_norm"
        r"|reciprocal_sqrt",
        # Inductor names a kernel by its operations, in the alphabet's order: by eq a target's column is found
        "cross-entropy": r"cross_entropy|log_softmax|nll|logsumexp|head_loss|loss\.py|eq_exp2?_(\w+_)?log_",
        "attention": r"flash|fmha|sdpa|scaled_dot|attention|attend|d_q_|d_kv|_softmax"
        r"|mask_kernel|across_kernel|matmul_dq|dot_do_o|convert_dq",
        "products": r"gemm|nvjet|cublas|cutlass|xmma|matmul|splitk|descriptor_kernel|pointer_kernel"
        r"|^hopper_kernel|ynn|\bdot|aten::(add)?b?a?d?d?mm\b|aten::mm|convolution|linear",
        "norms and elementwise": r"norm|gelu|tanh|elementwise|fusion|fused|copy|cat|memcpy|memset|embedding"
        r"|index|reduce|fill|philox|dropout|sum|add|mul|sub|div|rsqrt|transpose|convert|wrapped|broadcast"
        r"|select|slice|scatter|gather|sort|concatenate|_runs_|aten::",
        "other": r"",
    }.items()
}


class Event(NamedTuple):
    """Something that the device did; times in microseconds."""

    name: str
    thread: tuple[Any, Any]
    begin: float
    length: float


@dataclass(frozen=True)
class Breakdown:
    """A profile in short.

    Attributes:
        steps: That were recorded.
        span: Seconds from the first kernel's begin to the last one's end.
        busy: Seconds in which at least one ran.
        kernels: Calls and seconds of each name.
    """

    steps: int
    span: float
    busy: float
    kernels: Mapping[str, tuple[int, float]]

    @property
    def launched(self) -> float:
        """Kernels a step."""
        return sum(calls for calls, _ in self.kernels.values()) / self.steps

    def seconds(self) -> dict[str, float]:
        """Of a step, by class; what runs side by side is scaled to the time in which anything ran."""
        found = dict.fromkeys([*CLASSES, IDLE], 0.0)
        for name, (_, seconds) in self.kernels.items():
            found[class_of(name)] += seconds
        scale = self.busy / (sum(found.values()) or 1.0) / self.steps
        found = {name: scale * seconds for name, seconds in found.items()}
        return found | {IDLE: (self.span - self.busy) / self.steps}


def breakdown_from_json(values: Mapping[str, Any]) -> Breakdown:
    """What ``dataclasses.asdict`` made of one, as JSON keeps it."""
    kernels = {name: (calls, seconds) for name, (calls, seconds) in values["kernels"].items()}
    return Breakdown(values["steps"], values["span"], values["busy"], kernels)


def class_of(name: str) -> str:
    """The class of a kernel; ``REST`` and what nothing fits is "other"."""
    if name == REST:
        return "other"
    return next(kind for kind, pattern in CLASSES.items() if pattern.search(name))


def read_profile(folder: Path, steps: int) -> Breakdown | None:
    """The profile that a run left; None if there is none, or it holds nothing."""
    torches = [folder / "trace.json"]
    traces = [*sorted(folder.glob("plugins/profile/*/*.trace.json.gz")), *filter(Path.is_file, torches)]
    if not traces:
        return None
    path = traces[-1]
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            raw = json.load(file).get("traceEvents", [])
        except ValueError:
            return None
    events = list(_of_jax(raw) if path.suffix == ".gz" else _of_torch(raw))
    return _summed(events, steps) if events else None


def _event(raw: Mapping[str, Any], name: str) -> Event:
    return Event(name, (raw["pid"], raw["tid"]), raw["ts"], raw["dur"])


def _of_torch(raw: Sequence[Mapping[str, Any]]) -> Iterable[Event]:
    """Kernels and copies; without a GPU the operators, each for itself."""
    device = [e for e in raw if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    operators = [] if device else [e for e in raw if e.get("cat") == "cpu_op" and "dur" in e]
    found = [_event(e, e["name"]) for e in device or operators]
    return found if device else _without_inner(found)


def _of_jax(raw: Sequence[Mapping[str, Any]]) -> Iterable[Event]:
    """What runs on the streams of a GPU, or, without one, the compiled program's operations."""
    names = {e["pid"]: e["args"]["name"] for e in raw if e.get("name") == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in raw if e.get("name") == "thread_name"}
    done = [e for e in raw if e.get("ph") == "X"]
    device = [e for e in done if "GPU" in names.get(e["pid"], "")]
    device = [e for e in device if "Stream" in threads.get((e["pid"], e["tid"]), "")]
    if device:
        return [_event(e, _place(e)) for e in device]
    inner = (e for e in done if "hlo_op" in e.get("args", {}))
    return _without_inner(_event(e, re.sub(r"\.\d+$", "", e["name"])) for e in inner)


def _place(event: Mapping[str, Any]) -> str:
    """A kernel's name, and what JAX says of its place in the program: the operation and the file."""
    args = event.get("args", {})
    source = Path(str(args.get("source", ""))).name
    place = [str(args.get("name") or args.get("tf_op") or ""), str(args.get("hlo_op", "")), source]
    words = " ".join(re.sub(r"\.\d+\b", "", word) for word in place if word)
    return f"{event['name']} [{words[-160:]}]" if words else str(event["name"])


def _without_inner(events: Iterable[Event]) -> Iterator[Event]:
    """Each operation's own time: what it calls on its thread is taken from it."""
    threads: dict[tuple[Any, Any], list[Event]] = defaultdict(list)
    for event in events:
        threads[event.thread].append(event)
    for found in threads.values():
        outer: list[tuple[float, int]] = []
        ordered = sorted(found, key=_order)
        own = [event.length for event in ordered]
        for place, event in enumerate(ordered):
            while outer and outer[-1][0] <= event.begin:
                outer.pop()
            if outer:
                own[outer[-1][1]] -= event.length
            outer.append((event.begin + event.length, place))
        yield from (e._replace(length=max(0.0, left)) for e, left in zip(ordered, own, strict=True))


def _order(event: Event) -> tuple[float, float]:
    """By begin; of two that begin together the outer one first."""
    return float(event.begin), -float(event.length)


def _summed(events: Sequence[Event], steps: int) -> Breakdown:
    calls: dict[str, int] = defaultdict(int)
    seconds: dict[str, float] = defaultdict(float)
    for event in events:
        calls[event.name] += 1
        seconds[event.name] += 1e-6 * event.length
    ordered = sorted(seconds, key=lambda name: -seconds[name])
    kept = {name: (calls[name], seconds[name]) for name in ordered[:MOST_NAMES]}
    if len(ordered) > MOST_NAMES:
        rest = ordered[MOST_NAMES:]
        kept[REST] = sum(calls[name] for name in rest), sum(seconds[name] for name in rest)
    spans = [(float(event.begin), float(event.begin + event.length)) for event in events]
    span = max(end for _, end in spans) - min(begin for begin, _ in spans)
    return Breakdown(steps, 1e-6 * span, 1e-6 * covered(spans), kept)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How long at least one of them lasts, of begins and ends."""
    total, last = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, last))
        last = max(last, end)
    return total
