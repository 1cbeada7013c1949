"""Temperature: scores are divided by it before softmax; below 1 the weights are sharper, above 1 flatter."""

import numpy as np

import fastsoftmax as fs
from fastsoftmax.lab import ablation_jobs as measure
from fastsoftmax.lab import report
from fastsoftmax.lab.ablation_jobs import claim, mean, percent, shown
from fastsoftmax.lab.jobs import Job, plain

NAME = "temperature"
TITLE = "Temperature"
ARTICLE = (
    "A temperature divides the scores before softmax: below 1 the weights are sharp, above 1 flat; towards 0 the "
    "largest score takes all, towards infinity all are equal. Text drawn at a low temperature repeats itself, at a "
    "high one it is varied and loses sense. A model whose attention is sharp relies on few tokens, one whose attention "
    "is flat hedges.")

SCORES = (3.0, 2.0, 1.0)
DRAWN = (0.3, 0.5, 0.7, 1.0, 1.3, 1.6)
READ = (0.25, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 4.0)
FEW = 0.25      # of the tokens in view: attention that puts 90 % of its weight on fewer relies on few


def run(lab):
    trained = [lab.language_model(seed) for seed in lab.seeds(1, 3)]
    lab.run(trained, "temperature: training")
    sizes = {"samples": lab.choose(4, 8), "size": lab.choose(300, 400)}
    cost = sizes["samples"] * sizes["size"] / 100
    drawing = [
        Job("ablation_jobs:draw_texts", measure.of_model(job, temperatures=list(DRAWN), seed=seed, **sizes), cost)
        for seed, job in zip(lab.seeds(1, 3), trained, strict=True)]
    reading = [Job("ablation_jobs:read_at", measure.of_model(job, temperatures=list(READ), windows=16))
               for job in trained]
    found = lab.run(drawing + reading, "temperature: text and attention")
    measured = plain({"weights": weights(), "text": texts_of(found[:len(drawing)]),
                      "attention": attention_of(found[len(drawing):])})
    claims = [*claims_of_weights(measured["weights"]), *claims_of_text(measured["text"]),
              *claims_of_attention(measured["attention"])]
    example = trained[0].arguments
    settings = {name: example[name] for name in ("model", "steps", "batch", "length", "rate")} | sizes | {
        "seeds": lab.seeds(1, 3), "text": lab.text.source, "digest": lab.text.digest}
    return {"article": ARTICLE, "settings": settings, "measured": measured, "claims": claims,
            "verdict": verdict(measured)}


# ---- measured -------------------------------------------------------------------------------------------------------


def weights():
    """Weights and entropy of three scores: at three temperatures, at the limits, and over a range."""
    def at(temperatures):
        t = np.array(temperatures, float)
        rows = np.tile(SCORES, (len(t), 1))
        return {"temperatures": t, "weights": fs.softmax(rows, axis=1, temperature=t[:, None]),
                "entropy": fs.softmax_entropy(rows, axis=1, temperature=t[:, None])}

    return {"scores": SCORES, "cases": at([0.5, 1, 2]), "limits": at([1e-3, 1e6]),
            "curve": at(np.geomspace(0.05, 50, 61))}


def texts_of(found):
    """Over the temperatures: a sample, the variety of drawn texts for each seed, and its means over seeds."""
    names = [name for name in found[0]["written"] if name != "words"]
    return {"temperatures": [row["temperature"] for row in found[0]["drawn"]],
            "samples": [row["sample"] for row in found[0]["drawn"]],
            "seeds": {name: [[row[name] for row in one["drawn"]] for one in found] for name in names},
            **{name: [mean(one["drawn"][i][name] for one in found)
                      for i in range(len(found[0]["drawn"]))] for name in names},
            "written": found[0]["written"]}


def attention_of(found):
    """Means over seeds, and the losses of each."""
    return {"temperatures": found[0]["temperatures"], "losses": [one["loss"] for one in found],
            **{name: np.mean([one[name] for one in found], 0) for name in (
                "loss", "entropy", "tokens", "most_entropy", "most_tokens")}}


# ---- claims ---------------------------------------------------------------------------------------------------------


def claims_of_weights(found):
    cases, limits = found["cases"], found["limits"]
    rows = "; ".join(f"{shown(row, 3)} (entropy {entropy:.3f}) at {t:g}" for t, row, entropy in zip(
        *(cases[name] for name in ("temperatures", "weights", "entropy")), strict=True))
    sharp, usual, flat = cases["weights"]
    yield claim("Weights are sharp below temperature 1 and flat above.", f"Softmax of 3, 2, 1: {rows}.",
                max(sharp) > max(usual) > max(flat) and np.all(np.diff(found["curve"]["entropy"]) > 0))
    cold, hot = np.array(limits["weights"])
    yield claim("Towards 0 the largest score takes all; towards infinity all weights are equal.",
                f"At {limits['temperatures'][0]:g}: {shown(cold)}; at {limits['temperatures'][1]:g}: "
                f"{shown(hot)}.", bool(cold.max() == 1 and np.ptp(hot) < 1e-5))


def claims_of_text(found):
    at = {t: i for i, t in enumerate(found["temperatures"])}
    low, usual, high = at[0.3], at[1.0], at[1.6]
    repeated, runs, known, variety = (found[name] for name in ("repeated_4", "repeated_bytes", "known", "distinct_2"))
    written = found["written"]
    yield claim(
        "Text drawn at a low temperature repeats itself.",
        f"Runs of four words that came before: {percent(repeated[low])} at {DRAWN[0]:g}, {percent(repeated[usual])} at "
        f"1, {percent(written['repeated_4'])} in the held-out text; runs of eight bytes: {percent(runs[low])}, "
        f"{percent(runs[usual])}, {percent(written['repeated_bytes'])}.",
        together(higher(repeated[low], repeated[usual], 0.05), higher(runs[low], runs[usual], 0.05)))
    yield claim(
        "At a high temperature text is more varied.",
        f"Different pairs of words, as a share of all: {percent(variety[low])} at {DRAWN[0]:g}, "
        f"{percent(variety[usual])} at 1, {percent(variety[high])} at {DRAWN[-1]:g}, "
        f"{percent(written['distinct_2'])} in the held-out text.",
        higher(variety[high], variety[low], 0.02))
    yield claim(
        "At a high temperature text loses sense.",
        f"Words of three letters or more that occur in the training text: {percent(known[low])} at {DRAWN[0]:g}, "
        f"{percent(known[usual])} at 1, {percent(known[high])} at {DRAWN[-1]:g}, {percent(written['known'])} in the "
        f"held-out text.", higher(known[usual], known[high], 0.05))


def higher(a, b, margin):
    """Whether a share a is above b by the margin; "partly" if it is above by less."""
    if a is None or b is None:
        return False
    return a > b + margin or ("partly" if a > b else False)


def together(*holds):
    """Of several parts: whether all hold, "partly" if some do or do in part."""
    return all(part is True for part in holds) or ("partly" if any(holds) else False)


def claims_of_attention(found):
    at = {t: i for i, t in enumerate(found["temperatures"])}
    loss, (sharp, usual, flat) = found["loss"], (at[t] for t in (0.5, 1.0, 2.0))
    best = int(np.argmin(loss))
    yield claim(
        "A trained model is best read at the temperature that it was trained with.",
        f"Held-out loss {loss[usual]:.3f} nats a byte at 1, {loss[sharp]:.3f} at 0.5, {loss[flat]:.3f} at 2; the "
        f"lowest of {len(loss)} temperatures is {loss[best]:.3f} at {found['temperatures'][best]:g}.",
        best == usual or ("partly" if loss[usual] - loss[best] < 0.01 else False))
    shares = [tokens / found["most_tokens"] * 0.9 for tokens in found["tokens"][usual]]
    few = [share < FEW for share in shares]
    yield claim(
        "A trained model relies on few tokens.",
        f"90 % of a query's weight lies on {shown(found['tokens'][usual], 3)} tokens, layer by layer, of "
        f"{found['most_tokens'] / 0.9:.0f} in view; the entropy is {shown(found['entropy'][usual], 3)} nats of at "
        f"most {found['most_entropy']:.2f}.", together(*few))
    costs = loss[sharp] - loss[usual], loss[flat] - loss[usual]
    yield claim(
        "It hedges: to sharpen its attention costs more than to flatten it.",
        f"Halving the temperature costs {costs[0]:.3f} nats a byte, doubling it {costs[1]:.3f}.", costs[0] > costs[1])


def verdict(measured):
    text, attention = measured["text"], measured["attention"]
    usual, best = attention["temperatures"].index(1.0), int(np.argmin(attention["loss"]))
    first, last = text["temperatures"][0], text["temperatures"][-1]
    return (
        f"From a temperature of {first:g} to {last:g}, runs of eight bytes that came before go from "
        f"{percent(text['repeated_bytes'][0])} to {percent(text['repeated_bytes'][-1])} and known words from "
        f"{percent(text['known'][0])} to {percent(text['known'][-1])}; a trained model's attention holds 90 % of its "
        f"weight on {shown(attention['tokens'][usual], 3)} of {attention['most_tokens'] / 0.9:.0f} tokens, layer by "
        f"layer, and reads best at {attention['temperatures'][best]:g}.")


# ---- what a reader sees ---------------------------------------------------------------------------------------------


def tables(result):
    weights, text, attention = (result["measured"][name] for name in ("weights", "text", "attention"))
    names = {"distinct_1": "different words", "distinct_2": "pairs", "distinct_3": "threes",
             "repeated_4": "repeated fours", "repeated_bytes": "repeated bytes", "known": "words known"}
    rows = [[t, shown(row, 3), entropy] for found in (weights["cases"], weights["limits"]) for t, row, entropy in
            zip(*(found[name] for name in ("temperatures", "weights", "entropy")), strict=True)]
    return [
        report.Table("Softmax of 3, 2, 1", ["temperature", "weights", "entropy"], rows, digits=3),
        report.Table("Text drawn at temperatures, shares", ["temperature", *names.values()], [
            *([t, *(text[name][i] for name in names)] for i, t in enumerate(text["temperatures"])),
            ["held-out text", *(text["written"][name] for name in names)]], digits=3),
        report.Table("A sample of each", ["temperature", "text"], [
            [t, " ".join(sample[:200].split())]
            for t, sample in zip(text["temperatures"], text["samples"], strict=True)]),
        report.Table("Attention read at temperatures", [
            "temperature", "held-out loss", "entropy by layer", "tokens with 90 % of the weight"], [
            [t, attention["loss"][i], shown(attention["entropy"][i], 3), shown(attention["tokens"][i], 3)]
            for i, t in enumerate(attention["temperatures"])])]


def draw(result):
    measured = result["measured"]
    return [draw_weights(measured["weights"]), draw_variety(measured["text"]), draw_attention(measured["attention"])]


def draw_weights(found):
    figure, curve = report.figure(12.8, 4, 2), found["curve"]
    left, right = figure.axes
    report.curves(left, curve["temperatures"], {
        f"score {score:g}": [row] for score, row in zip(found["scores"], np.transpose(curve["weights"]), strict=True)},
        "temperature", "weight", log="x")
    report.curves(right, curve["temperatures"], {"entropy": [curve["entropy"]]},
                  "temperature", "entropy, nats", log="x")
    right.axhline(np.log(len(found["scores"])), color="0.6", linewidth=1)
    low, usual, high = (row[0] for row in found["cases"]["weights"])
    return report.Picture(
        "weights", "Weights and entropy of the scores 3, 2, 1",
        f"Sharp below 1, flat above: the largest weight is {low:.3f} at 0.5, {usual:.3f} at 1 and {high:.3f} at 2 "
        f"(grey: the entropy of equal weights).", figure)


def draw_variety(found):
    figure = report.figure(12.8, 4, 3)
    names = {"different pairs of words": "distinct_2", "repeated runs of eight bytes": "repeated_bytes",
             "words known": "known"}
    for axis, (label, name) in zip(figure.axes, names.items(), strict=True):
        report.curves(axis, found["temperatures"], {"drawn": found["seeds"][name]}, "temperature", f"{label}, share")
        if found["written"][name] is not None:
            axis.axhline(found["written"][name], color="0.6", linewidth=1)
        axis.set_ylim(0, 1.05)
    return report.Picture(
        "text", "Text drawn at temperatures",
        f"Low temperatures repeat, high ones lose sense: repeated runs of eight bytes go from "
        f"{percent(found['repeated_bytes'][0])} to {percent(found['repeated_bytes'][-1])}, known words from "
        f"{percent(found['known'][0])} to {percent(found['known'][-1])} (grey: held-out text).", figure)


def draw_attention(found):
    figure, at = report.figure(12.8, 4, 3), found["temperatures"]
    loss, entropy, tokens = figure.axes
    report.curves(loss, at, {"held out": found["losses"]}, "temperature", "held-out loss, nats a byte", log="x")
    for axis, name, label in ((entropy, "entropy", "entropy, nats"),
                              (tokens, "tokens", "tokens with 90 % of the weight")):
        report.curves(axis, at, {f"layer {i + 1}": [row] for i, row in enumerate(np.transpose(found[name]))},
                      "temperature", label, log="x")
        axis.axhline(found[f"most_{name}"], color="0.6", linewidth=1)
    best, usual = int(np.argmin(found["loss"])), at.index(1.0)
    return report.Picture(
        "attention", "A trained model's attention at other temperatures",
        f"Few tokens or a hedge: at the temperature of training 90 % of the weight lies on "
        f"{shown(found['tokens'][usual], 3)} tokens, layer by layer, and the loss is lowest at "
        f"{found['temperatures'][best]:g} (grey: equal weights).", figure)
