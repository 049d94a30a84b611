"""Formats measurements as text."""

from typing import Any

_WIDTH = 18
_QUIET = 0.5


def table(m: dict[str, Any]) -> str:
    """Formats a measurement of `measure_all` as tables."""
    sections = [_head(m), _timings(m), _rest(m)]
    if m["load_before"] > _QUIET:
        busy = f"(the machine was busy, load {m['load_before']:.1f}"
        sections[0].append(f"{busy}: times are too long, most of all PyTorch's on the CPU)")
    if m["peers"]:
        sections.append(_peers(m))
    return "\n\n".join("\n".join(section) for section in sections)


def scaling(measurements: list[dict[str, Any]]) -> str:
    """Formats the speed-up of a round with the number of devices, relative to the first measurement."""
    lines = [_row("devices", "round ms", "images/s", "speed-up", "of linear")]
    first = measurements[0]
    for m in measurements:
        count, timing = m["devices"]["count"], m["timings"]["round"]
        speed_up = timing["images_per_s"] / first["timings"]["round"]["images_per_s"]
        linear = count / first["devices"]["count"]
        cells = (f"{1000 * timing['seconds']:,.1f}", f"{timing['images_per_s']:,.0f}", f"{speed_up:.2f}")
        lines.append(_row(str(count), *cells, f"{speed_up / linear:.0%}"))
    return "\n".join([f"batch {first['batch_size']} in total, for every number of devices", *lines])


def _head(m: dict[str, Any]) -> list[str]:
    devices, top = m["devices"], m["ceilings"]
    shape = "x".join(map(str, m["image_shape"]))
    products = ", ".join(f"{dtype} {rate / 1e12:.3g} TFLOP/s" for dtype, rate in top["flops_per_s"].items())
    return [
        f"{m['teacher']} -> {m['student']}, {m['method']}, batch {m['batch_size']}, {shape}, {m['compute_dtype']}",
        f"{m['synthesis_steps']} synthesis and {m['student_steps']} student steps per round, "
        f"{m['rounds_per_epoch']} rounds per epoch",
        f"{devices['count']} x {devices['kind']}, {devices['threads']} host threads; medians of "
        f"{m['repeats']} repeats; " + ", ".join(f"{name} {version}" for name, version in m["versions"].items()),
        f"ceilings per device: matrix product {products}; a + b {top['bytes_per_s'] / 1e9:.3g} GB/s",
    ]


def _timings(m: dict[str, Any]) -> list[str]:
    lines = [_row("", "ms", "images/s", "TFLOP", "TFLOP/s", "of product", "GB", "GB/s", "of a + b", "floor ms")]
    for kind, t in m["timings"].items():
        work = (f"{t['flops'] / 1e12:.3g}", f"{t['flops_per_s'] / 1e12:.3g}", f"{t['of_product']:.0%}")
        traffic = (f"{t['bytes'] / 1e9:.3g}", f"{t['bytes_per_s'] / 1e9:.3g}", f"{t['of_stream']:.0%}")
        lines.append(_row(kind, *_speed(t), *work, *traffic, f"{1000 * t['floor_s']:,.1f}"))
    if m["loop"] == "python":
        lines.append(f"(the epoch's time is {m['rounds_per_epoch']} times the round's)")
    if not m["finite"]:
        lines.append("(a step was not finite; all later steps had no effect)")
    return lines


def _rest(m: dict[str, Any]) -> list[str]:
    start, memory = m["start"], m["peak_memory_mib"]
    device = f", device {memory['device']:,.0f} MiB" if memory["device"] else ""
    first = "".join(f" + first {kind} {seconds:.1f}" for kind, seconds in start["first_steps_s"].items())
    return [
        "compilation: " + ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in m["compile_s"].items()),
        f"peak memory of this process so far: host {memory['host']:,.0f} MiB{device}",
        f"start to the end of the first student step: {start['to_first_step_s']:.1f} s = imports "
        f"{start['imports_s']:.1f} + initialisation {start['set_up_s']:.1f}{first}, including compilation",
    ]


def _peers(m: dict[str, Any]) -> list[str]:
    peers, kinds = m["peers"], ("synthesis step", "student step", "round")
    lines = [
        f"the same round in PyTorch {peers['version']} on {peers['device']}, {peers['threads']} threads, "
        "alternating with ours",
        _row("", *(f"{kind} ms" for kind in kinds), "images/s", "round / ours", "least - most", width=_WIDTH),
    ]
    for name, timings, ratio in [
        ("ours", m["timings"], None),
        *((name, peer["timings"], peer["round_over_ours"]) for name, peer in peers["rounds"].items()),
    ]:
        cells = [f"{1000 * timings[kind]['seconds']:,.1f}" for kind in kinds]
        cells += [f"{timings['round']['images_per_s']:,.0f}"]
        if ratio:
            cells += [f"{ratio['median']:.2f}", f"{ratio['least']:.2f} - {ratio['most']:.2f}"]
        lines.append(_row(name, *cells, width=_WIDTH))
    lines += [f"{name}: {peer['what']}" for name, peer in peers["rounds"].items()]
    if peers["not_compiled"]:
        lines.append(f"no compiled round: {peers['not_compiled']}")
    return lines


def _speed(timing: dict[str, float]) -> tuple[str, str]:
    return f"{1000 * timing['seconds']:,.1f}", f"{timing['images_per_s']:,.0f}"


def _row(label: str, *cells: str, width: int = 11) -> str:
    return f"{label:{_WIDTH}}" + "".join(f"{cell:>{width}}" for cell in cells)
