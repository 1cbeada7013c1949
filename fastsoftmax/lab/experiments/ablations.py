"""Ablations: what breaks when a part of softmax attention is left out: the exponential, the shift by the maximum, masks
of -inf, the causal mask, normalisation."""

import dataclasses

import numpy as np

from fastsoftmax.lab import ablation_jobs as measure
from fastsoftmax.lab import report
from fastsoftmax.lab.ablation_jobs import claim, mean, percent, several, shown
from fastsoftmax.lab.jobs import Job, plain

NAME = "ablations"
TITLE = "Leaving out a part"
ARTICLE = (
    "Each part of softmax attention is there because something breaks without it. Without the exponential, weights may "
    "be negative and nothing is emphasised: divided by their sum, the scores 10, 9, 8 and 100, 9, 8 hardly differ. "
    "Without the shift by the maximum, the exponential overflows. Masking with 0 instead of -inf gives wrong or "
    "negative weights, and without a causal mask a model sees what it should predict. Without normalisation, outputs "
    "are unbounded and training is unstable.")

CASES = ([10, 9, 8], [100, 9, 8], [45, 40, 35], [5, 4.4, 3.9], [2.8, 1.2, 0.5, 3.1], [3, 2, 1], [3, -2, 1])
SPREADS = (0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320, 640, 1280)
TYPES = (np.float16, np.float32, np.float64)
UNSTABLE = 0.5      # nats a byte by which a loss rises above what was reached before
KINDS = {"softmax": "softmax", "sum_normalized": "divided by the sum", "dot_product": "raw dot products"}


def run(lab):
    trained = [job for jobs in (*mask_jobs(lab).values(), *curve_jobs(lab).values()) for job in jobs]
    lab.run(list({job.key: job for job in trained}.values()), "ablations: training")    # all at once; read below
    measured = plain({
        "exponential": exponential(), "shift": shift(lab), "masking": masking(lab), "causal_mask": causal_mask(lab),
        "normalisation": normalisation(lab)})
    claims = [*claims_of_numbers(measured), *claims_of_models(measured)]
    example = mask_jobs(lab)["masked"][0].arguments
    settings = {name: example[name] for name in ("model", "steps", "batch", "length", "rate")} | {
        "seeds": lab.seeds(1, 3), "text": lab.text.source, "digest": lab.text.digest}
    return {"article": ARTICLE, "settings": settings, "measured": measured, "claims": claims,
            "verdict": verdict(claims, measured)}


# ---- measured -------------------------------------------------------------------------------------------------------


def exponential():
    """Weights of the worked cases by both functions, and the Jacobians near a sum of 0."""
    rows = [{"scores": scores, "division": measure.divide(x), "softmax": measure.fs.softmax(x)}
            for scores, x in ((scores, np.array(scores, float)) for scores in CASES)]
    first, second = rows[0], rows[1]
    return {"cases": rows, "jacobians": measure.jacobians(),
            "moved": {name: measure.distance(first[name], second[name]) for name in ("division", "softmax")}}


def shift(lab):
    """Limits and errors of each type."""
    # Where long double is no wider than float64, nothing here is exact enough to judge float64.
    types = TYPES if np.finfo(np.longdouble).eps < np.finfo(np.float64).eps else TYPES[:2]
    return {"limits": {np.dtype(t).name: measure.limits(t) for t in TYPES},
            "errors": {np.dtype(t).name: measure.errors(t, SPREADS, lab.seed) for t in types}}


def masking(lab):
    """Weights of rows in which the last two scores were hidden, by 0 and by -inf."""
    cases = []
    for scores in ([2.8, 1.2, 0.5, 3.1], [-1, -2, 0.5, 3.1]):
        zero, hidden = np.array([*scores[:2], 0, 0]), np.array([*scores[:2], -np.inf, -np.inf])
        cases.append({"scores": scores, "softmax_zero": measure.fs.softmax(zero),
                      "softmax_inf": measure.fs.softmax(hidden), "division_zero": measure.divide(zero),
                      "division_inf": shown(measure.divide(hidden))})
    return {"cases": cases, "causal": measure.hidden_weight(lab.seed)}


def mask_jobs(lab):
    """The models with and without a causal mask."""
    def unmasked(seed):
        job = lab.language_model(seed, is_causal=False)
        return dataclasses.replace(job, arguments=job.arguments | {"probe": "ablation_jobs:loss_alone"})

    seeds = lab.seeds(1, 3)
    return {"masked": [lab.language_model(seed) for seed in seeds], "unmasked": [unmasked(seed) for seed in seeds]}


def causal_mask(lab):
    trained = mask_jobs(lab)
    texts = [
        Job("ablation_jobs:alone", measure.of_model(job, windows=16, samples=lab.choose(4, 6), size=200), cost=job.cost)
        for jobs in trained.values() for job in jobs]
    *alone, frequencies = lab.run(
        [*texts, Job("ablation_jobs:frequencies", {"text": lab.text.digest})], "ablations: predicting alone")
    found = {"byte_frequencies": frequencies["loss"], "uniform": np.log(256)}
    for name, jobs in trained.items():
        histories, ends = lab.run(jobs, "ablations: training"), alone[:len(jobs)]
        alone = alone[len(jobs):]
        seeds = {"train_loss": [history["train"][-1] for history in histories]} | {
            key: [end[key] for end in ends] for key in ("loss_alone", "together", "known")}
        found["at"] = histories[0]["at"]
        found[name] = {key: mean(values) for key, values in seeds.items()} | {
            "seeds": seeds, "train": [history["train"] for history in histories],
            # With a mask the whole window's losses are those of its prefixes.
            "alone": [history["probe"] or history["held_out"] for history in histories],
            "by_length": np.mean([end["by_length"] for end in ends], 0),
            "prompt": ends[0]["prompt"], "samples": ends[0]["samples"]}
    return found


def curve_jobs(lab):
    """{(kind of attention, factor of the learning rate): jobs}; three seeds at the usual rate."""
    sizes = lab.choose({}, {"width": 128, "steps": lab.steps_of(120, 300)})

    def job(seed, kind, factor):
        job = lab.language_model(seed, **sizes | ({} if kind == "softmax" else {"attention": kind}))
        if factor != 1:
            job = dataclasses.replace(job, arguments=job.arguments | {"rate": factor * job.arguments["rate"]})
        return job

    return {(kind, factor): [job(seed, kind, factor) for seed in lab.seeds(1, 3 if factor == 1 else 1)]
            for factor in lab.choose((1, 4), (1, 3, 10)) for kind in KINDS}


def normalisation(lab):
    [stack] = lab.run([Job("ablation_jobs:norms", {
        "kinds": list(KINDS), "depth": 16, "length": 64, "width": 64, "seeds": lab.seeds(5, 20)})],
        "ablations: a stack of layers")
    curves = []
    for (kind, factor), jobs in curve_jobs(lab).items():
        histories = lab.run(jobs, "ablations: training")
        losses = [history["held_out"] for history in histories]
        curves.append({"kind": kind, "rate": jobs[0].arguments["rate"], "factor": factor, "at": longest_at(histories),
                       "held_out": losses, "diverged": [history["diverged"] for history in histories],
                       "final": [None if history["diverged"] is not None else history["held_out"][-1]
                                 for history in histories],
                       "rise": max(largest_rise(row) for row in losses)})
    example = curve_jobs(lab)["softmax", 1][0].arguments
    return {"stack": stack, "curves": curves, "model": example["model"], "steps": example["steps"]}


def longest_at(histories):
    return max((history["at"] for history in histories), key=len)


def largest_rise(losses):
    """By how much a loss rises above its lowest value before; infinite where it is no number."""
    values = np.array(losses, float)
    return float(np.max(np.where(np.isnan(values), np.inf, values) - np.fmin.accumulate(values)))


# ---- claims ---------------------------------------------------------------------------------------------------------


def claims_of_numbers(measured):
    """Those on rows of scores."""
    yield from claims_of_exponential(measured["exponential"])
    yield from claims_of_shift(measured["shift"])
    yield from claims_of_masking(measured["masking"])


def claims_of_exponential(found):
    cases = {shown(row["scores"]): row for row in found["cases"]}
    negative, near, far = cases["3, -2, 1"], cases["10, 9, 8"], cases["100, 9, 8"]
    yield claim(
        "Without the exponential, weights may be negative.",
        f"3, -2, 1 divided by their sum: {shown(negative['division'])}; "
        f"softmax: {shown(negative['softmax'], 3)}.",
        min(negative["division"]) < 0 < min(negative["softmax"]))

    moved = found["moved"]
    yield claim(
        "Divided by their sum, 10, 9, 8 and 100, 9, 8 hardly differ.",
        f"Divided: {shown(near['division'], 3)} and {shown(far['division'], 3)}, "
        f"{moved['division']:.0%} of the weight moves; softmax: {shown(near['softmax'], 3)} and "
        f"{shown(far['softmax'], 3)}, {moved['softmax']:.0%} moves.",
        moved["division"] < 0.05 or ("partly" if moved["division"] < moved["softmax"] / 2 else False))

    ratios = {name: near[name][0] / near[name][1] for name in ("division", "softmax")}
    yield claim(
        "Without the exponential, a difference of scores is not emphasised.",
        f"The scores 10 and 9 get weights in the ratio {ratios['division']:.2f} when divided by their sum and "
        f"{ratios['softmax']:.2f} by softmax.",
        ratios["division"] < ratios["softmax"])

    first, *_, last = found["jacobians"]
    bound = max(row["softmax"] for row in found["jacobians"])
    yield claim(
        "Division by a sum near zero has gradients without bound; those of softmax are bounded.",
        f"At 3, -2, s - 1 the Jacobian of the division has norm {first['division']:.3g} at a sum s of {first['sum']:g} "
        f"and {last['division']:.3g} at {last['sum']:g}; that of softmax is at most {bound:.3g}.",
        last["division"] > 1e3 * first["division"] and bound <= 0.5)


def claims_of_shift(shift):
    limits, errors = shift["limits"], shift["errors"]
    beyond = [row["beyond"]["above"] for row in limits.values()]
    single = limits["float32"]
    below = single["beyond"]["below"]
    yield claim(
        "Without the shift by the maximum, the exponential overflows.",
        "The last score with a finite exp is " + ", ".join(f"{x['overflow']:.2f} in {t}" for t, x in limits.items()) +
        f"; {single['count']} equal scores overflow in their sum above "
        + ", ".join(f"{x['sum_overflow']:.2f}" for x in limits.values())
        + f". Just beyond, the naive weights in float32 are {single['beyond']['above']['naive']}, the shifted ones "
        f"{single['beyond']['above']['shifted']}.",
        all("nan" in row["naive"] and "nan" not in row["shifted"] + row["ours"] for row in beyond))
    yield claim(
        "Far below zero, the sum of exponentials underflows to 0 without the shift.",
        f"Three scores of {below['scores'][0]:.2f} in float32 give {below['naive']} without and {below['shifted']} "
        f"with it.",
        all("nan" in row["beyond"]["below"]["naive"] and "nan" not in row["beyond"]["below"]["ours"]
            for row in limits.values()))

    worst = {name: max(error for rows in errors.values() for error in rows[name] if error is not None)
             for name in ("shifted", "ours")}
    before = errors["float32"]
    usable = [i for i, error in enumerate(before["naive"]) if error is not None]
    yield claim(
        "The shift by the maximum makes softmax accurate at any scores.",
        f"Nothing overflows, but x - max is rounded: over scores from 0 to at most {max(SPREADS)} the largest "
        f"error is {worst['shifted']:.3g} ULP; of fastsoftmax {worst['ours']:.2g} ULP. In float32, as long as nothing "
        f"overflows, the shifted weights are off by up to {max(before['shifted'][i] for i in usable):.3g} ULP and the "
        f"naive ones by {max(before['naive'][i] for i in usable):.3g}.",
        True if worst["shifted"] <= 2 else "partly")


def claims_of_masking(masking):
    positive, negative = masking["cases"]
    causal = masking["causal"]
    hidden = sum(positive["softmax_zero"][2:])
    yield claim(
        "A mask of 0 instead of -inf gives wrong weights.",
        f"Softmax of 2.8, 1.2 and two hidden scores: {shown(positive['softmax_zero'], 3)} with 0, "
        f"{shown(positive['softmax_inf'], 3)} with -inf; of -1, -2 and two hidden ones: "
        f"{shown(negative['softmax_zero'], 3)} and {shown(negative['softmax_inf'], 3)}. In a causal "
        f"square of normal scores {causal['softmax']['hidden']:.0%} of the weight lies on hidden keys with 0, "
        f"{causal['causal_softmax']['hidden']:.0%} with a causal mask.",
        hidden > 0.01 and max(positive["softmax_inf"][2:]) == 0)
    yield claim(
        "Dividing by the sum after a mask of 0 gives negative or inverted weights.",
        f"-1, -2, 0, 0 divided by their sum: {shown(negative['division_zero'], 3)}, the lower score has the "
        f"larger weight; in the causal square {causal['division']['negative']:.0%} of the weights are negative, the "
        f"largest is {causal['division']['largest']:.3g}.",
        negative["division_zero"][1] > negative["division_zero"][0] and causal["division"]["negative"] > 0)
    yield claim(
        "A sum that holds -inf cannot be divided by.",
        f"2.8, 1.2, -inf, -inf divided by their sum: {positive['division_inf']}.", "nan" in positive["division_inf"])


def claims_of_models(measured):
    """Those on trained models and on the stack of layers."""
    found = measured["causal_mask"]
    masked, unmasked, letters = found["masked"], found["unmasked"], found["byte_frequencies"]
    ratio = masked["train_loss"] / unmasked["train_loss"]
    yield claim(
        "Without a causal mask the training loss falls below what is possible.",
        f"Training loss {several(unmasked['seeds']['train_loss'])} nats a byte without a mask, "
        f"{several(masked['seeds']['train_loss'])} with it, {ratio:.3g} times as much; one sees the byte that it "
        f"should predict.",
        ratio > 2 or ("partly" if ratio > 1.1 else False))
    loss = unmasked["loss_alone"]
    yield claim(
        "Such a model cannot predict alone.",
        f"With nothing but the bytes so far its loss is {several(unmasked['seeds']['loss_alone'])} nats a byte, "
        f"that of the masked model {several(masked['seeds']['loss_alone'])}, of the frequencies of bytes "
        f"{letters:.3f}, of a uniform guess {found['uniform']:.3f}.",
        loss > letters or ("partly" if loss > masked["loss_alone"] + 0.1 else False))
    yield claim(
        "The text that it generates is garbage.",
        f"Of the words in its text {percent(unmasked['known'])} occur in the training text, "
        f"{percent(masked['known'])} of those of the masked model.",
        (unmasked["known"] or 0) < (masked["known"] or 0) / 2
        or ("partly" if (unmasked["known"] or 0) < (masked["known"] or 0) else False))
    yield from claims_of_normalisation(measured["normalisation"])


def claims_of_normalisation(found):
    stack, depth = found["stack"], len(found["stack"]["softmax"]["rms"][0]) - 1
    reach = {kind: max(found["stack"][kind]["reach"]) for kind in KINDS}
    yield claim(
        "Without normalisation the outputs of attention are unbounded; those of softmax are averages of values.",
        f"The largest output of a first layer is {reach['softmax']:.2f} times the largest value with softmax, "
        f"{reach['dot_product']:.3g} times with raw dot products, {reach['sum_normalized']:.3g} times divided by the "
        f"sum.",
        reach["softmax"] <= 1 < min(reach["dot_product"], reach["sum_normalized"]))
    ends = {kind: median_end(stack[kind]["rms"]) for kind in KINDS}
    yield claim(
        "Through a stack of layers the norms explode without normalisation.",
        f"Root mean square of the states, from 1, after {depth} layers without norms: " + "; ".join(
            f"{KINDS[kind]} {growth(*end, depth)}" for kind, end in ends.items()) + ".",
        all(end[0] < depth or end[1] > 100 * ends["softmax"][1] for kind, end in ends.items() if kind != "softmax"))
    yield from claims_of_curves(found["curves"])


def claims_of_curves(curves):
    """Whether training is unstable, which is to diverge or to lose what was learned, and whether it ends worse."""
    others = [row for row in curves if row["kind"] != "softmax"]
    gone = sum(len(row["final"]) - len(ended(row)) for row in others)
    rises = [row["rise"] for row in others if row["rise"] is not None]
    unstable = [len(ended(row)) < len(row["final"]) or row["rise"] is None or row["rise"] > UNSTABLE for row in others]
    yield claim(
        "Training without normalisation is unstable.",
        f"Of {sum(len(row['final']) for row in others)} runs of a decoder with RMS norms, at learning rates up to "
        f"{max(row['rate'] for row in others):g}, {gone} diverged; in the others the held-out loss rises by at most "
        f"{max(rises, default=0):.2g} nats a byte above its lowest value before.",
        all(unstable) or ("partly" if any(unstable) else False))

    good = {row["factor"]: mean(ended(row)) for row in curves if row["kind"] == "softmax"}
    lost = [mean(ended(row)) - good[row["factor"]] for row in others if ended(row) and good[row["factor"]] is not None]
    yield claim(
        "Without softmax a decoder learns less.",
        "Held-out loss in nats a byte at learning rates of "
        + ", ".join(f"{row['rate']:g}" for row in curves if row["kind"] == "softmax") + ": " + "; ".join(
            f"{KINDS[kind]} " + ", ".join(several(ended(row)) if ended(row) else "diverged"
                                          for row in curves if row["kind"] == kind) for kind in KINDS) + ".",
        all(x > 0.05 for x in lost) or ("partly" if any(x > 0.05 for x in lost) else False))


def ended(row):
    """The final losses of the runs that did not diverge."""
    return [loss for loss in row["final"] if loss is not None]


def median_end(rows):
    """(the number of layers until half of the seeds had no number any more, the median there or at the end)."""
    values = np.array([[np.inf if x is None else x for x in row] for row in rows])
    middle = np.median(values, 0)
    finite = int(np.isfinite(middle).sum()) - 1
    return finite, float(middle[finite])


def growth(layer, rms, depth):
    return f"{rms:.3g}" + ("" if layer == depth else f" after {layer}, then out of range")


def verdict(claims, measured):
    counts = {answer: sum(row["holds"] == answer for row in claims) for answer in ("yes", "partly", "no")}
    not_so = "; ".join(row["claim"].rstrip(".") for row in claims if row["holds"] == "no")
    masked, unmasked = measured["causal_mask"]["masked"], measured["causal_mask"]["unmasked"]
    return (
        f"{counts['yes']} of {len(claims)} claims hold, {counts['partly']} in part and {counts['no']} do not"
        + (f" ({not_so})" if not_so else "")
        + f"; without a causal mask the training loss is {unmasked['train_loss']:.3f} against "
        f"{masked['train_loss']:.3f} nats a byte, and {unmasked['loss_alone']:.2f} against {masked['loss_alone']:.2f} "
        f"when the model must predict alone.")


# ---- what a reader sees ---------------------------------------------------------------------------------------------


def tables(result):
    measured = result["measured"]
    cases, masked = measured["exponential"]["cases"], measured["masking"]["cases"]
    found = measured["causal_mask"]
    names = {"train_loss": "in training", "together": "held out, whole windows", "loss_alone": "held out, alone",
             "known": "words known"}
    return [
        report.Table("Divided by the sum, and softmax", ["scores", "divided by the sum", "softmax"], [
            [shown(row["scores"]), shown(row["division"], 3), shown(row["softmax"], 3)]
            for row in cases]),
        report.Table("Norms of the Jacobians at 3, -2, s - 1", ["sum s", "divided by the sum", "softmax"], [
            [row["sum"], row["division"], row["softmax"]] for row in measured["exponential"]["jacobians"]], digits=3),
        limits_table(measured["shift"]["limits"]), errors_table(measured["shift"]["errors"]),
        report.Table("The last two of four scores hidden", [
            "scores", "softmax, by 0", "softmax, by -inf", "divided, by 0", "divided, by -inf"], [
            [shown(row["scores"]), *(shown(row[name], 3) for name in (
                "softmax_zero", "softmax_inf", "division_zero")), row["division_inf"]] for row in masked]),
        report.Table("Losses with and without a causal mask, nats a byte", ["model", *names.values()], [
            [name, *(found[name][key] for key in names)] for name in ("masked", "unmasked")]),
        report.Table("Text drawn at temperature 0.8", ["model", "text"], [
            [name, " ".join(found[name]["samples"][0].split())] for name in ("masked", "unmasked")]),
        curves_table(measured["normalisation"]["curves"])]


def limits_table(limits):
    names = {"overflow": "exp overflows above", "sum_overflow": "the sum of 1000 above",
             "subnormal": "exp loses digits below", "underflow": "exp is 0 below"}
    return report.Table("Where the naive softmax ends", ["type", *names.values(), "weights just above", "just below"], [
        [name, *(row[key] for key in names), row["beyond"]["above"]["naive"], row["beyond"]["below"]["naive"]]
        for name, row in limits.items()])


def errors_table(errors):
    return report.Table("Largest errors of weights, ULP", [
        "type", "range of the scores", "naive", "shifted", "fastsoftmax"], [
        [name, *row] for name, found in errors.items()
        for row in zip(*(found[key] for key in ("spread", "naive", "shifted", "ours")), strict=True)], digits=3)


def curves_table(curves):
    return report.Table("A decoder trained with other attention", [
        "attention", "learning rate", "held-out loss", "diverged at step", "largest rise of the loss"], [
        [KINDS[row["kind"]], row["rate"], mean(ended(row)),
         ", ".join(str(step) for step in row["diverged"] if step is not None) or "-", row["rise"]] for row in curves])


def draw(result):
    measured = result["measured"]
    return [draw_errors(measured["shift"]), draw_norms(measured["normalisation"]), draw_mask(measured["causal_mask"]),
            draw_curves(measured["normalisation"])]


def draw_errors(shift):
    figure = report.figure(12.8, 4, len(shift["errors"]))
    for axis, (name, found) in zip(figure.axes, shift["errors"].items(), strict=True):
        report.curves(axis, found["spread"], {
            label: [found[key]] for label, key in (
                ("exp(x) / sum", "naive"), ("exp(x - max) / sum", "shifted"), ("fastsoftmax", "ours"))},
            f"range of the scores, {name}", "largest error, ULP", log="xy")
        axis.axvline(shift["limits"][name]["overflow"], color="0.6", linewidth=1)
    worst = {key: max(x for found in shift["errors"].values() for x in found[key] if x is not None)
             for key in ("shifted", "ours")}
    return report.Picture(
        "ulp", "The shift: what it saves and what it costs",
        f"Without the shift, weights stop being numbers where the scores pass the grey line; with it, rounding of "
        f"x - max costs up to {worst['shifted']:.3g} ULP, as long as scores near 0 have weight at all; fastsoftmax "
        f"stays within {worst['ours']:.2g}.", figure)


def draw_norms(found):
    figure, depth = report.figure(), len(found["stack"]["softmax"]["rms"][0]) - 1
    report.curves(figure.axes[0], range(depth + 1), {KINDS[kind]: found["stack"][kind]["rms"] for kind in KINDS},
                  "layers", "root mean square of the states", log="y")
    ends = {kind: median_end(found["stack"][kind]["rms"]) for kind in KINDS}
    return report.Picture(
        "norms", "Norms through a stack without norms",
        "Without normalisation outputs are unbounded: the states reach " + "; ".join(
            f"{growth(*end, depth)} ({KINDS[kind]})" for kind, end in ends.items()) + ".", figure)


def draw_mask(found):
    figure = report.figure(12.8, 4, 2)
    left, right = figure.axes
    for axis, key, label in ((left, "train", "training loss, nats a byte"),
                             (right, "alone", "held-out loss when alone, nats a byte")):
        report.curves(axis, found["at"], {name: found[name][key] for name in ("masked", "unmasked")}, "step", label)
        axis.set_ylim(bottom=0)
    right.axhline(found["byte_frequencies"], color="0.6", linewidth=1)
    masked, unmasked = found["masked"], found["unmasked"]
    return report.Picture(
        "mask", "With and without a causal mask",
        f"Without a causal mask the answer is in view, and the training loss falls to {unmasked['train_loss']:.3f} "
        f"nats a byte, that of the masked model to {masked['train_loss']:.2f}; when they must predict alone the losses "
        f"are {unmasked['loss_alone']:.2f} and {masked['loss_alone']:.2f} (grey: the frequencies of bytes, "
        f"{found['byte_frequencies']:.2f}).", figure)


def draw_curves(found):
    factors = sorted({row["factor"] for row in found["curves"]})
    figure = report.figure(12.8, 4, len(factors))
    for axis, factor in zip(figure.axes, factors, strict=True):
        rows = [row for row in found["curves"] if row["factor"] == factor]
        report.curves(axis, max((row["at"] for row in rows), key=len), {
            KINDS[row["kind"]]: row["held_out"] for row in rows},
            f"step, learning rate {rows[0]['rate']:g}", "held-out loss, nats a byte")
        axis.set_ylim(0, 8)
    ends = "; ".join(f"{KINDS[row['kind']]} {several(ended(row)) if ended(row) else 'diverged'}"
                     for row in found["curves"] if row["factor"] == 1)
    return report.Picture(
        "unnormalised", "Training without normalisation",
        f"Training without normalisation is said to be unstable: at the usual learning rate the held-out losses end "
        f"at {ends}.", figure)
