"""Scaling: dot products of width d_k have spread sqrt(d_k); without 1/sqrt(d_k) softmax saturates and learns slowly."""

import numpy as np

import fastsoftmax as fs
from fastsoftmax.lab import decoder, report, texts
from fastsoftmax.lab.experiments import SYMBOLS_A_TOKEN, more_perplexity
from fastsoftmax.lab.jobs import Job

NAME, TITLE = "scaling", "Scaling by 1/sqrt(d_k)"
ARTICLE = (
    "Dot products of width d_k have a spread of sqrt(d_k): 8, 23 and 45 at 64, 512 and 2048. Without the division by "
    "it softmax saturates and its gradient vanishes: training takes 3 to 5 times as long, perplexity is 10 to 20 % "
    "worse, and attention is far too peaked; an entropy below 1 nat means trouble."
)
WIDTHS = (1, 4, 16, 64, 256, 512, 2048)     # d_k of the random vectors
KEYS, QUERIES = 128, 512
SHOWN = 40  # tokens in the pictures of attention


def run(lab):
    widths = lab.choose((16, 64), (16, 64, 256))
    seeds = lab.seeds(1, 3)
    inner = lab.choose(64, 256)
    spreads = lab.run([Job("experiments.scaling:spread", {"width": d, "seed": lab.seed}) for d in WIDTHS], "spread")
    trainings = {
        (d, way): [lab.language_model(seed, heads=inner // d, **({} if way == "scaled" else {"scale": 1.0}))
                   for seed in seeds]
        for d in widths for way in ("scaled", "unscaled")
    }
    every = [job for group in trainings.values() for job in group]
    results = dict(zip((job.key for job in every), lab.run(every, "scaling: training"), strict=True))
    found = {group: [results[job.key] for job in group_jobs] for group, group_jobs in trainings.items()}
    shown = widths[-1]
    maps = lab.run([Job("experiments.scaling:attention_map", {"run": trainings[shown, way][0].key,
                    "model": trainings[shown, way][0].arguments["model"], "text": lab.text.digest}) for way in
                    ("scaled", "unscaled")], "attention maps")
    measured = {
        "random": {str(d): s for d, s in zip(WIDTHS, spreads, strict=True)},
        "curves": {str(d): curves(found[d, "scaled"], found[d, "unscaled"]) for d in widths},
        "entropy": {str(d): {way: entropy_by_layer(found[d, way]) for way in ("scaled", "unscaled")} for d in widths},
        "maps": dict(zip(("scaled", "unscaled"), maps, strict=True)) | {"d_k": shown},
    }
    for d in widths:
        measured["curves"][str(d)]["steps_to_equal_loss"] = [
            times_longer(a, b) for a, b in zip(found[d, "scaled"], found[d, "unscaled"], strict=True)]
    claims = [claim_of_spread(measured), claim_of_saturation(measured), claim_of_gradients(measured),
              claim_of_steps(measured, widths),
              claim_of_perplexity(measured, widths), claim_of_peaks(measured, widths), claim_of_trouble(measured)]
    return {
        "article": ARTICLE,
        "settings": {"seeds": seeds, "text": lab.text.source, "digest": lab.text.digest,
                     "keys": KEYS, "queries": QUERIES, "training": every[0].arguments},
        "measured": measured, "claims": claims, "verdict": verdict(measured, widths),
    }


# ---- jobs -----------------------------------------------------------------------------------------------------------


def spread(context, *, width, seed):
    """A job: random queries and keys of variance 1; the spread of their dot products, and what softmax makes of it."""
    rng = np.random.default_rng([seed, width])
    queries, keys = rng.standard_normal((QUERIES, width)), rng.standard_normal((KEYS, width))
    scores = queries @ keys.T
    found = {"spread": float(scores.std())}
    for way, scale in (("scaled", width**-0.5), ("unscaled", 1.0)):
        p = fs.softmax(scores * scale, axis=-1)
        norms = query_gradient(p, keys, scale)
        found[way] = {"entropy": float(fs.softmax_entropy(scores * scale, axis=-1).mean()),
                      "largest_weight": float(p.max(1).mean()), "gradient": float(norms.mean()),
                      "gradient_median": float(np.median(norms))}
    return found


def query_gradient(p, keys, scale):
    """The Frobenius norm of d weights / d query for each row of p (N, K), with keys (K, E).

    The Jacobian of softmax is diag(p) - p p^T, and that of the scores scale * keys: row i of their product is
    scale * p_i (key_i - mean), the mean being that of the keys weighted by p.
    """
    products = keys @ keys.T
    with_mean = p @ products                                            # key_i . mean
    squares = np.diag(products) - 2 * with_mean + (p * with_mean).sum(1)[:, None]       # |key_i - mean|**2
    return scale * np.sqrt(np.maximum((p * p * squares).sum(1), 0))


def attention_map(context, *, run, model, text):
    """A job: the attention of a trained model on held-out text, the mean over the heads of each layer."""
    config, p = decoder.Config(**model), context.arrays(run)
    held = texts.load(context.folder, text, "held_out")
    tokens, _ = texts.spread_windows(held, SHOWN, 3)
    maps = [np.round(decoder.weights(p, config, tokens[1:2], i)[0].mean(0), 4) for i in range(config.layers)]
    return {"layers": maps, "text": bytes(tokens[1].astype(np.uint8)).decode("latin-1")}


# ---- what is measured -----------------------------------------------------------------------------------------------


def curves(scaled, unscaled):
    """Held-out losses of both ways at each evaluation: their means, and each seed's."""
    count = min(len(run["at"]) for run in (*scaled, *unscaled))        # a run that diverged ends early
    found = {"at": scaled[0]["at"][:count], "seeds": {}}
    for way, runs in (("scaled", scaled), ("unscaled", unscaled)):
        each = [run["held_out"][:count] for run in runs]
        found["seeds"][way] = each
        found[way] = np.mean(each, 0)
        found[f"{way}_perplexity"] = np.exp([losses[-1] for losses in each])
        found[f"{way}_diverged"] = [run["diverged"] for run in runs]
    return found


def entropy_by_layer(runs):
    """[evaluation][layer] in nats, the mean over heads and seeds."""
    count = min(len(run["entropy"]) for run in runs)
    return np.mean([run["entropy"][:count] for run in runs], (0, 3))


def times_longer(scaled, unscaled):
    """The steps of the unscaled run over those in which the scaled one reached its final loss; below 1 where the
    scaled one ends higher: then the roles change."""
    slow, fast = (unscaled, scaled) if scaled["held_out"][-1] <= unscaled["held_out"][-1] else (scaled, unscaled)
    steps = slow["at"][-1] / step_of(fast, slow["held_out"][-1])
    return steps if slow is unscaled else 1 / steps


def step_of(run, loss):
    """The step at which the held-out loss first fell to `loss`, between evaluations along a line."""
    at, losses = run["at"], run["held_out"]
    i = next(i for i, x in enumerate(losses) if x <= loss)
    if i == 0:
        return at[0] or 1
    share = (losses[i - 1] - loss) / (losses[i - 1] - losses[i])
    return at[i - 1] + share * (at[i] - at[i - 1])


def worse(measured, d, symbols=SYMBOLS_A_TOKEN):
    """By how many % the perplexity of so many symbols is higher without scaling, for each seed."""
    seeds = measured["curves"][str(d)]["seeds"]
    return more_perplexity(*([losses[-1] for losses in seeds[way]] for way in ("scaled", "unscaled")), symbols)


# ---- claims ---------------------------------------------------------------------------------------------------------


def interval(values, form="{:.2f}"):
    """ "1.2" for one value, "1.1 to 1.3" for several."""
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low} to {high}"


def claim_of_spread(measured):
    found = {d: measured["random"][str(d)]["spread"] for d in (64, 512, 2048)}
    off = max(abs(s / d**0.5 - 1) for d, s in found.items())
    return {"claim": "The spread of dot products is sqrt(d_k): 8, 23, 45 at 64, 512, 2048.",
            "measured": ", ".join(f"{s:.1f} at {d}" for d, s in found.items()) + f" ({QUERIES * KEYS} products each).",
            "holds": "yes" if off < 0.05 else "no"}


def claim_of_saturation(measured):
    a, b = (measured["random"]["512"][way] for way in ("scaled", "unscaled"))
    return {"claim": "Unscaled, softmax saturates.",
            "measured": f"At d_k = 512 the largest of {KEYS} weights is {b['largest_weight']:.2f} on average, "
                        f"{a['largest_weight']:.2f} with scaling; entropy {b['entropy']:.2f} and {a['entropy']:.2f} "
                        "nats.",
            "holds": "yes" if b["entropy"] < 0.5 * a["entropy"] else "no"}


def claim_of_gradients(measured):
    rows = {d: [measured["random"][str(d)][way] for way in ("scaled", "unscaled")] for d in (64, 512, 2048)}
    typical = [b["gradient_median"] < 0.5 * a["gradient_median"] for a, b in rows.values()]
    average = [b["gradient"] < 0.5 * a["gradient"] for a, b in rows.values()]
    return {"claim": "Unscaled, the gradient that reaches a query vanishes.",
            "measured": "Norm of d weights / d query, half of the queries below / mean: "
                        + "; ".join(f"{b['gradient_median']:.3f} / {b['gradient']:.2f} without and "
                                    f"{a['gradient_median']:.3f} / {a['gradient']:.2f} with scaling at d_k = {d}"
                                    for d, (a, b) in rows.items()) + ".",
            "holds": "yes" if all(typical + average) else "partly" if any(typical + average) else "no"}


def claim_of_steps(measured, widths):
    found = {d: measured["curves"][str(d)]["steps_to_equal_loss"] for d in widths}
    means = [np.mean(x) for x in found.values()]
    holds = "yes" if min(means) >= 3 else "partly" if max(means) >= 1.25 else "no"
    return {"claim": "Training takes 3 to 5 times as long.",
            "measured": "Steps to the loss at which training without scaling ended, with and without it, as a ratio: "
                        + "; ".join(f"{interval(x)} at d_k = {d}" for d, x in found.items())
                        + " (below 1: it was faster). A step is the same work.",
            "holds": holds}


def claim_of_perplexity(measured, widths):
    token, byte = {d: worse(measured, d) for d in widths}, {d: worse(measured, d, 1) for d in widths}
    inside = [10 <= np.mean(x) <= 20 for x in token.values()]
    above = [np.mean(x) >= 5 and min(x) > 0 for x in token.values()]        # in every seed
    holds = "yes" if all(inside) and all(above) else "partly" if any(above) else "no"
    return {"claim": "Perplexity is 10 to 20 % worse.",
            "measured": f"At equal steps, in % a token of {SYMBOLS_A_TOKEN} bytes (in brackets: a byte): "
                        + "; ".join(f"{interval(token[d], '{:+.1f}')} ({interval(byte[d], '{:+.1f}')}) at d_k = {d}"
                                    for d in widths) + ".",
            "holds": holds}


def claim_of_peaks(measured, widths):
    last = {d: [np.mean(measured["entropy"][str(d)][way][-1]) for way in ("scaled", "unscaled")] for d in widths}
    first = {d: [np.mean(measured["entropy"][str(d)][way][0]) for way in ("scaled", "unscaled")] for d in widths}
    lower = [b < 0.8 * a for a, b in last.values()]
    return {"claim": "Attention is far too peaked.",
            "measured": "Entropy of attention in nats, scaled and unscaled: "
                        + "; ".join(f"d_k = {d}: {first[d][0]:.2f} and {first[d][1]:.2f} before training, "
                                    f"{a:.2f} and {b:.2f} after it" for d, (a, b) in last.items()) + ".",
            "holds": "yes" if all(lower) else "partly" if any(lower) else "no"}


def claim_of_trouble(measured):
    """Whether the models whose layers have an entropy below 1 nat are the worse ones."""
    rows = [(measured["curves"][d][way][-1], min(measured["entropy"][d][way][-1]))
            for d in measured["curves"] for way in ("scaled", "unscaled")]
    below, above = ([loss for loss, entropy in rows if (entropy < 1) == low] for low in (True, False))
    best_loss, best_entropy = min(rows)
    if not below or not above:
        holds, how = "no", f"{'every' if below else 'no'} model has a layer below 1 nat"
    else:
        holds = "yes" if min(below) > max(above) + 0.02 else "no" if np.mean(below) < np.mean(above) else "partly"
        how = (f"models with a layer below 1 nat end at a loss of {interval(below)}, "
               f"those without at {interval(above)}")
    return {"claim": "An entropy below 1 nat means trouble.",
            "measured": f"{how[0].upper()}{how[1:]}; the best model (loss {best_loss:.3f}) has a layer at "
                        f"{best_entropy:.2f} nats.",
            "holds": holds}


def verdict(measured, widths):
    d = widths[-1]
    ratio = [np.mean(measured["curves"][str(w)]["steps_to_equal_loss"]) for w in widths]
    low, high = (np.mean(worse(measured, width)) for width in (widths[0], d))
    known = all(claim(measured)["holds"] == "yes" for claim in (claim_of_spread, claim_of_saturation))
    return (f"The spread and the saturation are {'' if known else 'not '}as claimed; their cost in training depends "
            f"on the head's width: without scaling it took {ratio[0]:.2f} times the steps at d_k = {widths[0]} and "
            f"{ratio[-1]:.2f} times at {d}, and the perplexity of a token differed by {low:+.1f} % and {high:+.1f} %.")


# ---- what is shown --------------------------------------------------------------------------------------------------


def tables(result):
    m = result["measured"]
    names = ("entropy", "largest_weight", "gradient_median", "gradient")
    random = [[int(d), s["spread"], *(s[way][name] for name in names for way in ("scaled", "unscaled"))]
              for d, s in m["random"].items()]
    trained = []
    for d, c in m["curves"].items():
        for way in ("scaled", "unscaled"):
            losses = [x[-1] for x in c["seeds"][way]]
            trained.append([int(d), way, np.mean(losses), np.ptp(losses), np.exp(np.mean(losses)),
                            *m["entropy"][d][way][-1]])
    layers = len(trained[0]) - 5
    return [
        report.Table("Random queries and keys of variance 1: entropy in nats, norm of d weights / d query",
                     ["d_k", "spread", "entropy, scaled", "unscaled", "largest weight, scaled", "unscaled",
                      "gradient, median, scaled", "unscaled", "gradient, mean, scaled", "unscaled"], random),
        report.Table("After training: loss in nats a byte, perplexity a byte, entropy of attention by layer",
                     ["d_k", "", "loss", "spread over seeds", "perplexity",
                      *(f"layer {i + 1}" for i in range(layers))], trained),
    ]


def draw(result):
    m = result["measured"]
    return [draw_random(m), draw_curves(m, result["claims"][3]), draw_entropy(m), draw_entropy_in_training(m),
            draw_maps(m)]


def draw_random(m):
    widths = [int(d) for d in m["random"]]
    figure = report.figure(8, 3.4, columns=2)
    left, right = figure.axes
    for axis, label, lines in (
            (left, "entropy of the weights, nats", {way: (way, "entropy") for way in ("scaled", "unscaled")}),
            (right, "norm of d weights / d query", {"scaled": ("scaled", "gradient"),
             "unscaled, mean": ("unscaled", "gradient"), "unscaled, median": ("unscaled", "gradient_median")})):
        report.curves(axis, widths, {line: [[m["random"][str(d)][way][name] for d in widths]]
                                     for line, (way, name) in lines.items()}, "d_k", label)
        axis.set_xscale("log", base=2)
    d = m["random"]["512"]
    return report.Picture(
        "random", "Softmax of random dot products",
        "Claimed: without scaling softmax saturates; measured: at d_k = 512 its entropy is "
        f"{d['unscaled']['entropy']:.2f} nats in place of {d['scaled']['entropy']:.2f}.", figure)


def draw_curves(m, claim):
    figure = report.figure(3.2 * len(m["curves"]) + 0.8, 3.4, columns=len(m["curves"]))
    for axis, (d, c) in zip(figure.axes, m["curves"].items(), strict=True):
        report.curves(axis, c["at"][1:], {way: [x[1:] for x in c["seeds"][way]] for way in ("scaled", "unscaled")},
                      "step", "held-out loss, nats a byte")
        axis.set_title(f"d_k = {d}")
    return report.Picture("curves", "Learning with and without scaling",
                          report.caption(claim), figure)


def draw_entropy(m):
    figure = report.figure(3.2 * len(m["curves"]) + 0.8, 3.4, columns=len(m["curves"]))
    for axis, d in zip(figure.axes, m["curves"], strict=True):
        depth = range(1, len(m["entropy"][d]["scaled"][-1]) + 1)
        report.curves(axis, list(depth), {way: [m["entropy"][d][way][-1]] for way in ("scaled", "unscaled")}, "layer",
                      "entropy of attention, nats")
        axis.set_title(f"d_k = {d}")
        axis.set_xticks(list(depth))
    d = list(m["curves"])[-1]
    a, b = (np.mean(m["entropy"][d][way][-1]) for way in ("scaled", "unscaled"))
    return report.Picture("entropy", "Entropy of attention against depth, after training",
                          f"Claimed: without scaling attention is far too peaked; measured at d_k = {d}: {b:.2f} nats "
                          f"without and {a:.2f} with scaling, the mean over layers.", figure)


def draw_entropy_in_training(m):
    d = list(m["curves"])[-1]
    figure = report.figure(8, 3.6, columns=2)
    for axis, way in zip(figure.axes, ("scaled", "unscaled"), strict=True):
        by_layer = np.array(m["entropy"][d][way]).T
        report.curves(axis, m["curves"][d]["at"], {f"layer {i + 1}": [x.tolist()] for i, x in enumerate(by_layer)},
                      "step", "entropy of attention, nats")
        axis.set_title(f"d_k = {d}, {way}")
        axis.set_ylim(0, 1.05 * max(np.max(entropy) for entropy in m["entropy"][d].values()))
    ends = {way: m["entropy"][d][way] for way in ("scaled", "unscaled")}
    return report.Picture("entropy-in-training", "Entropy of attention by layer over training",
                          "Claimed: unscaled attention starts too peaked and stays so; measured: the mean over layers "
                          "goes from "
                          + " and from ".join(f"{np.mean(x[0]):.2f} to {np.mean(x[-1]):.2f} nats {way}"
                                              for way, x in ends.items()) + ".", figure)


def draw_maps(m):
    ways = ("scaled", "unscaled")
    layers = len(m["maps"]["scaled"]["layers"])
    figure = report.figure(2.6 * layers, 5.6, columns=layers, rows=2)
    for axis, (way, i) in zip(figure.axes, [(way, i) for way in ways for i in range(layers)], strict=True):
        report.heat(axis, np.sqrt(m["maps"][way]["layers"][i]), f"{way}, layer {i + 1}", "key", "query", 0, 1)
    peaks = {way: np.mean([np.max(x, 1)[1:] for x in m["maps"][way]["layers"]]) for way in ways}
    return report.Picture("maps", f"Attention of trained models at d_k = {m['maps']['d_k']} (square roots of weights)",
                          f"Claimed: without scaling a query sees one key only; measured: its largest weight is "
                          f"{peaks['unscaled']:.2f} on average without and {peaks['scaled']:.2f} with scaling.", figure)
