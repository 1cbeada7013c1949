"""Alternatives: ReLU, linear and Performer attention, and no softmax at all, in training, exact selection and time."""

import time
import tracemalloc

import numpy as np

from fastsoftmax.lab import decoder, report
from fastsoftmax.lab.experiments import SYMBOLS_A_TOKEN, more_perplexity
from fastsoftmax.lab.jobs import Job, Stopped

NAME, TITLE = "alternatives", "Alternatives to softmax"
ARTICLE = (
    "ReLU attention, the Linear Transformer and the Performer are linear in the length, 5 to 15 % worse, and fail at "
    "precise selection; without softmax attention does not work."
)
KINDS = ("softmax", "relu", "linear", "performer")
WITHOUT = ("dot_product", "sum_normalized")
TASKS = ("recall", "copying", "selective_copying")
LEARNED, LOST = 50, 20  # % of symbols right by which softmax has learned a task; by which another is behind it
HEADS, WIDTH = 4, 64  # of what is timed
LONGEST_TURN = 1.0  # seconds, after which a length is not measured again


def run(lab):
    seeds = lab.seeds(1, 2)
    trainings = {kind: [lab.language_model(seed, **({} if kind == "softmax" else {"attention": kind}))
                        for seed in seeds] for kind in (*KINDS, *WITHOUT)}
    found = run_groups(lab, trainings, "alternatives: training")
    lengths = lab.choose((24,), (8, 16, 32))
    tasks = {(task, length, kind): [Job("training:train", {
        "model": {"symbols": 128, "width": 64, "layers": 2, "heads": 1, "attention": kind}, "data": {"task": task},
        "steps": lab.steps_of(100, 2000), "batch": lab.choose(32, 64), "length": length, "rate": 5e-3, "seed": lab.seed,
        "evaluations": lab.choose(4, 20)}, cost=length)]
        for task in TASKS for length in lengths for kind in KINDS}
    selected = run_groups(lab, tasks, "alternatives: selection")
    longest = lab.choose(2048, 32768)
    timed = lab.run([Job("experiments.alternatives:timing", {"kind": kind, "longest": longest}) for kind in KINDS],
                    "alternatives: time against length", alone=True)
    measured = {kind: of_training(runs) for kind, runs in found.items()}
    for kind, times in zip(KINDS, timed, strict=True):
        measured[kind] |= times
    measured["selection"] = {task: {kind: {str(length): selected[task, length, kind][0]["accuracy"][-1]
                                           for length in lengths} for kind in KINDS} for task in TASKS}
    measured["crossing"] = {kind: crossing(measured["softmax"], measured[kind]) for kind in KINDS[1:]}
    claims = [claim_of_length(measured), claim_of_loss(measured), claim_of_selection(measured),
              claim_without(measured)]
    return {
        "article": ARTICLE,
        "settings": {"seeds": seeds, "text": lab.text.source, "digest": lab.text.digest,
                     "training": trainings["relu"][0].arguments, "selection": next(iter(tasks.values()))[0].arguments,
                     "timed": {"heads": HEADS, "width": WIDTH, "causal": True, "dtype": "float32", "threads": 1}},
        "measured": measured, "claims": claims, "verdict": verdict(measured),
    }


def run_groups(lab, groups, title):
    """{group: results} of {group: jobs}, all of which run together."""
    jobs = [job for group in groups.values() for job in group]
    results = iter(lab.run(jobs, title))
    return {name: [next(results) for _ in group] for name, group in groups.items()}


def timing(context, *, kind, longest):
    """A job: seconds and peak memory of causal attention, forward, at lengths from 128 on.

    Memory is that of NumPy's arrays; the scratch of our kernels, some KB a thread at any length, is not in it.
    """
    lengths, seconds, memory = [], [], []
    config = decoder.Config(width=HEADS * WIDTH, heads=HEADS, attention=kind)
    for length in (2**i for i in range(7, 16)):
        if length > longest:
            break
        if context.stopped():
            raise Stopped
        rng = np.random.default_rng(length)
        query, key, value = rng.standard_normal((3, 1, HEADS, length, WIDTH), np.float32)
        if not lengths:                 # a first call imports and fills caches
            decoder.attention(query, key, value, config, config.scale)
        tracemalloc.start()
        decoder.attention(query, key, value, config, config.scale)
        memory.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        taken, began = [], time.perf_counter()
        while len(taken) < 3 or (len(taken) < 15 and time.perf_counter() - began < LONGEST_TURN):
            start = time.process_time()
            decoder.attention(query, key, value, config, config.scale)
            taken.append(time.process_time() - start)
            if taken[-1] > LONGEST_TURN:
                break
        lengths.append(length)
        seconds.append(float(np.median(taken)))
        context.progress(length / longest)
    return {"lengths": lengths, "seconds": seconds, "memory": memory}


# ---- what is measured -----------------------------------------------------------------------------------------------


def of_training(runs):
    """Held-out losses of several seeds: their means at each evaluation, and each seed's; steps at which one ended."""
    shortest = min(len(run["held_out"]) for run in runs)
    return {"at": runs[0]["at"][:shortest], "losses": np.mean([run["held_out"][:shortest] for run in runs], 0),
            "seeds": [run["held_out"] for run in runs], "cpu_seconds": [run["seconds"] for run in runs],
            "diverged": [run["diverged"] for run in runs]}


def crossing(softmax, other):
    """The length from which `other` takes less time than softmax at every greater one measured, or None."""
    faster = [b < a for a, b in zip(softmax["seconds"], other["seconds"], strict=True)]
    last_slower = max((i for i, better in enumerate(faster) if not better), default=-1)
    return other["lengths"][last_slower + 1] if last_slower + 1 < len(faster) else None


def growth(times):
    """The exponent of time against length over the last three lengths."""
    return float(np.polyfit(np.log(times["lengths"][-3:]), np.log(times["seconds"][-3:]), 1)[0])


def worse(measured, kind, symbols=SYMBOLS_A_TOKEN):
    """By how many % the perplexity of so many symbols is higher than softmax's at equal steps, for each seed."""
    return more_perplexity(*([losses[-1] for losses in measured[name]["seeds"]] for name in ("softmax", kind)), symbols)


def worse_at_equal_time(measured, kind):
    """The same of a token when both have had the CPU time that the faster of them took for all its steps."""
    pairs = []
    for i, (a, b) in enumerate(zip(measured["softmax"]["seeds"], measured[kind]["seeds"], strict=True)):
        times = measured["softmax"]["cpu_seconds"][i], measured[kind]["cpu_seconds"][i]
        end = min(times[0][-1], times[1][-1])
        pairs.append([np.interp(end, t, losses) for t, losses in zip(times, (a, b), strict=True)])
    return more_perplexity(*np.transpose(pairs))


# ---- claims ---------------------------------------------------------------------------------------------------------


def claim_of_length(measured):
    found = {kind: growth(measured[kind]) for kind in KINDS}
    ends = ", ".join(f"{kind} {exponent:.2f}" for kind, exponent in found.items())
    crossed = {kind: measured["crossing"][kind] for kind in KINDS[1:]}
    wins = ", ".join(f"{kind} from {n}" if n else f"{kind} at no length measured" for kind, n in crossed.items())
    linear = [found[kind] < 1.3 for kind in KINDS[1:]]
    lengths = ", ".join(map(str, measured["softmax"]["lengths"][-3:]))
    return {"claim": "ReLU attention, the Linear Transformer and the Performer are linear in the length.",
            "measured": f"Exponent of time against length over {lengths}: {ends}. Faster than our causal softmax: "
                        f"{wins}. ReLU of the scores needs all of them, like softmax: it is not linear.",
            "holds": "yes" if all(linear) else "partly" if any(linear) else "no"}


def claim_of_loss(measured):
    token = {kind: worse(measured, kind) for kind in KINDS[1:]}
    byte = {kind: np.mean(worse(measured, kind, 1)) for kind in KINDS[1:]}
    timed = {kind: np.mean(worse_at_equal_time(measured, kind)) for kind in KINDS[1:]}
    means = [np.mean(x) for x in token.values()]
    return {"claim": "They are 5 to 15 % worse.",
            "measured": "Perplexity against softmax at equal steps, in % a token of "
                        f"{SYMBOLS_A_TOKEN} bytes: "
                        + "; ".join(f"{kind} {', '.join(f'{x:+.1f}' for x in values)}" for kind, values in
                                    token.items())
                        + " (a value for each seed); a byte: "
                        + ", ".join(f"{kind} {x:+.1f}" for kind, x in byte.items())
                        + "; a token at equal CPU time: " + ", ".join(f"{kind} {x:+.1f}" for kind, x in timed.items())
                        + ".",
            "holds": "yes" if all(5 <= m <= 15 for m in means) else "partly" if any(m > 5 for m in means) else "no"}


def claim_of_selection(measured):
    """At the greatest length at which softmax has learned a task; a task that it has not learned says nothing."""
    lines, lost = [], []
    for task, kinds in measured["selection"].items():
        lengths = list(kinds["softmax"])
        learned = [n for n in lengths if 100 * kinds["softmax"][n] >= LEARNED]
        length = (learned or lengths)[-1]
        shares = {kind: 100 * kinds[kind][length] for kind in KINDS}
        lines.append(f"{task.replace('_', ' ')} at length {length}: "
                     + ", ".join(f"{kind} {share:.0f} %" for kind, share in shares.items())
                     + ("" if learned else " (softmax has not learned it: not judged)"))
        lost += [shares["softmax"] - shares[kind] > LOST for kind in KINDS[1:] if learned]
    return {"claim": "They fail at precise selection.",
            "measured": "Symbols right after equal training: " + "; ".join(lines) + ".",
            "holds": "yes" if lost and all(lost) else "partly" if any(lost) else "no"}


def claim_without(measured):
    parts, failed = [], []
    best = measured["softmax"]["losses"][-1]
    for kind in WITHOUT:
        steps, last = measured[kind]["diverged"], measured[kind]["losses"][-1]
        broke = [s for s in steps if s is not None]
        parts.append(f"{kind.replace('_', ' ')}: " + (f"diverged after {', '.join(map(str, broke))} steps, the loss "
                     f"before it {last:.2f}" if broke else f"loss {last:.3f}"))
        failed.append(bool(broke) or last > best + 0.5)
    return {"claim": "Without softmax attention does not work.",
            "measured": "; ".join(parts) + f"; softmax {best:.3f} nats a byte.",
            "holds": "yes" if all(failed) else "partly" if any(failed) or
                     max(measured[kind]["losses"][-1] for kind in WITHOUT) > best + 0.05 else "no"}


def verdict(measured):
    when = {kind: f"from length {n} on" if n else "at no length measured" for kind, n in measured["crossing"].items()}
    token = ", ".join(f"{np.mean(worse(measured, kind)):+.0f} % with {kind}" for kind in KINDS[1:])
    fail = {"yes": "all fail", "partly": "some fail", "no": "none is shown to fail"}
    return (f"Linear attention is faster than our softmax {when['linear']}, the Performer {when['performer']}; the "
            f"perplexity of a token differs from softmax's by {token}; where one token must be picked out, "
            f"{fail[claim_of_selection(measured)['holds']]}.")


# ---- what is shown --------------------------------------------------------------------------------------------------


def tables(result):
    m = result["measured"]
    trained = [[kind.replace("_", " "), m[kind]["losses"][-1], *(["", ""] if kind == "softmax" else
                [np.mean(worse(m, kind)), np.mean(worse(m, kind, 1))])]
               for kind in KINDS] + [[kind.replace("_", " "), m[kind]["losses"][-1], "", ""] for kind in WITHOUT]
    lengths = list(m["selection"]["recall"]["softmax"])
    selected = [[task.replace("_", " "), kind, *(100 * m["selection"][task][kind][n] for n in lengths)]
                for task in TASKS for kind in KINDS]
    timed = [[n, *(1e3 * m[kind]["seconds"][i] for kind in KINDS), *(m[kind]["memory"][i] / 2**20 for kind in KINDS)]
             for i, n in enumerate(m["softmax"]["lengths"])]
    return [
        report.Table("Held-out loss in nats a byte; perplexity a token and a byte against softmax, in %",
                     ["attention", "loss", "token, %", "byte, %"], trained),
        report.Table("Symbols right in %, by length", ["task", "attention", *lengths], selected, digits=3),
        report.Table(f"Causal attention forward, {HEADS} heads of {WIDTH}, one thread: milliseconds, and MB of arrays",
                     ["length", *(f"{kind}, ms" for kind in KINDS), *(f"{kind}, MB" for kind in KINDS)], timed,
                     digits=3),
    ]


def draw(result):
    m = result["measured"]
    return [draw_losses(m, result["claims"][1]), draw_selection(m, result["claims"][2]),
            draw_times(m, result["claims"][0])]


def draw_losses(m, claim):
    figure = report.figure(6.8, 4)
    report.curves(figure.axes[0], m["softmax"]["at"][1:], {
        kind.replace("_", " "): [x[1:] + [None] * (len(m["softmax"]["at"]) - len(x)) for x in m[kind]["seeds"]]
        for kind in (*KINDS, *WITHOUT)}, "step", "held-out loss, nats a byte")
    return report.Picture("losses", "Learning with other kinds of attention", report.caption(claim), figure)


def draw_selection(m, claim):
    figure = report.figure(9, 3.4, columns=len(TASKS))
    for axis, task in zip(figure.axes, TASKS, strict=True):
        lengths = list(m["selection"][task]["softmax"])
        report.bars(axis, [f"length {n}" for n in lengths],
                    {kind: [100 * m["selection"][task][kind][n] for n in lengths] for kind in KINDS}, None,
                    "symbols right, %")
        axis.set_title(task.replace("_", " "))
    return report.Picture("selection", "Exact selection", report.caption(claim), figure)


def draw_times(m, claim):
    figure = report.figure(8.4, 3.6, columns=2)
    for axis, name, factor, label in ((figure.axes[0], "seconds", 1e3, "milliseconds"),
                                      (figure.axes[1], "memory", 2**-20, "peak memory of arrays, MB")):
        report.curves(axis, m["softmax"]["lengths"], {kind: [[factor * x for x in m[kind][name]]] for kind in KINDS},
                      "length", label, log="xy")
    return report.Picture("times", "Time and memory against length", report.caption(claim), figure)
