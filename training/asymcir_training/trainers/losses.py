"""Losses of the three stages.

Notation: b batch, E joint-embedding width, C candidate count, N pictures compared with, L sentence tokens, P patches.
"""

import torch
from torch import Tensor
from torch.nn import functional


def contrast(queries: Tensor, candidates: Tensor, positives: Tensor, scale: Tensor | float) -> Tensor:
    """InfoNCE of queries against candidates, with one or more right candidates for each query.

    Args:
        queries: [b, E], any length.
        candidates: [C, E], any length.
        positives: [b, C], bool; the target distribution is even over a row's true entries.
        scale: inverse temperature.

    Returns:
        Scalar, mean over queries.
    """
    logits = scale * functional.normalize(queries, dim=-1) @ functional.normalize(candidates, dim=-1).T  # [b, C]
    target = positives.float() / positives.float().sum(dim=1, keepdim=True)
    return functional.cross_entropy(logits, target)


def global_contrastive_distillation(text_features: Tensor, image_features: Tensor, scale: Tensor | float) -> Tensor:
    """GCD: in-batch InfoNCE between the frozen text encoder's "a photo of <tokens>" and the teacher's image embedding.

    Both directions, as CLIP trains; the paper's text could not be read, so the symmetric form is our choice.

    Args:
        text_features: [b, E], through the frozen text encoder from the student's tokens.
        image_features: [b, E], of the same images from the frozen large visual encoder.
        scale: inverse temperature.

    Source: ISA, arXiv:2403.01431, the GCD loss.
    """
    same = _diagonal(text_features)
    return 0.5 * (
        contrast(text_features, image_features, same, scale) + contrast(image_features, text_features, same, scale)
    )


def similarity_distillation(
    text_features: Tensor, image_features: Tensor, others: Tensor, scale: Tensor | float
) -> Tensor:
    """Ask a sentence to rank a fixed set of pictures as the teacher ranks them from the picture itself.

    The divergence of softmax(scale * cos(sentence, others)) from softmax(scale * cos(picture, others)). Global
    contrastive distillation compares a picture with a batch only, where hardly any two pictures are alike; thousands
    of others hold the nearest neighbours, which decide R@1.

    Args:
        text_features: [b, E], any length, through the frozen text encoder from the student's tokens.
        image_features: [b, E], any length, of the same pictures, from the teacher.
        others: [N, E], L2-normalised, the teacher's features of the pictures to rank.
        scale: inverse temperature of both distributions.

    Returns:
        Scalar, mean over the batch.

    Source: SEED, Fang et al., ICLR 2021 (arXiv:2101.04731), with the training set in place of its queue. ISA has no
    such loss.
    """
    found = (scale * functional.normalize(text_features, dim=-1) @ others.T).log_softmax(dim=1)  # [b, N]
    asked = (scale * functional.normalize(image_features, dim=-1) @ others.T).log_softmax(dim=1)
    return functional.kl_div(found, asked, log_target=True, reduction="batchmean")


def local_alignment_regularization(token_features: Tensor, patch_features: Tensor, scale: Tensor | float) -> Tensor:
    """LAR for CLIP-like models, which have no matching encoder: late interaction, contrasted in the batch.

    A sentence fits an image as well as its tokens, on average, find a patch to rest on: mean over tokens of the largest
    cosine to a patch. A sentence's own image must fit better than the batch's others, and an image its own sentence.
    The paper has a matching encoder (BLIP) say "match"; this form is our adaptation.

    Args:
        token_features: [b, L, E], what the frozen text encoder made of each sentence token, in the joint space.
        patch_features: [b, P, E], of the same images from the frozen large visual encoder, in the joint space.
        scale: inverse temperature.

    Returns:
        Scalar.

    Source: ISA, arXiv:2403.01431, the LAR loss.
    """
    tokens = functional.normalize(token_features, dim=-1)
    patches = functional.normalize(patch_features, dim=-1)
    fits = torch.einsum("ile,jpe->ijlp", tokens, patches).amax(dim=3).mean(dim=2)  # [b sentences, b images]
    own = torch.arange(len(fits), device=fits.device)
    return 0.5 * (functional.cross_entropy(scale * fits, own) + functional.cross_entropy(scale * fits.T, own))


def composition_consistency(composed: Tensor, described: Tensor, scale: Tensor | float) -> Tensor:
    """Ask text(tokens, m) to match text("a photo of X", m), X the nearest phrase to the image under the teacher.

    Ours, beyond the paper: without it the sentence tokens learn to dominate the text encoder and the typed change
    hardly moves the query. Unlabelled images are still all it needs.

    Args:
        composed: [b, E], text features of the sentence tokens with a random modifier.
        described: [b, E], text features of the pseudo-caption with the same modifier.
        scale: inverse temperature of the in-batch contrast.
    """
    distance = 1.0 - functional.cosine_similarity(composed, described, dim=-1).mean()
    return distance + contrast(composed, described, _diagonal(composed), scale)


def token_redundancy(tokens: Tensor) -> Tensor:
    """Measure how much the tokens of a picture repeat one another: the mean squared cosine of two of them.

    Each token is taken less its mean over the batch. Without that, tokens that differ by a constant are far apart
    although all of them say the same about the picture.

    Args:
        tokens: [b, L, D], b and L of at least 2.

    Returns:
        Scalar from 0, all tokens of a picture at right angles, to 1, all of them in one line. Ours, beyond the paper.
    """
    length = tokens.shape[1]
    units = functional.normalize(tokens - tokens.mean(dim=0), dim=-1)
    cosines = units @ units.transpose(1, 2)  # [b, L, L]
    pairs = ~torch.eye(length, dtype=torch.bool, device=tokens.device)
    return cosines[:, pairs].square().mean()


def _diagonal(features: Tensor) -> Tensor:
    same = features.new_zeros(features.shape[0], features.shape[0]).bool()
    return same.fill_diagonal_(True)
