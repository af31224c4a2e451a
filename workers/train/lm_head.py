"""Log-probabilities of completions without a GPU: what TRL's fused head does with Triton.

TRL's own fall-back on a CPU projects every position to the vocabulary, prompts and padding too,
and makes a dozen passes over the logits. This one takes the completions' positions only.
"""

import functools
import types
from typing import Any

import torch
from trl.trainer.utils import FusedCausalLMOutput

TILE_TOKENS = 512
"""Rows of logits in memory at once: 100 MB at a vocabulary of 50,000."""


class _LogProbs(torch.autograd.Function):  # type: ignore[misc]
    """log softmax(hidden @ weight.T)[target], a tile of tokens at a time.

    hidden [N, H], weight [V, H], targets [N] -> [N]. The backward pass projects again instead of
    keeping [N, V] logits.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        log_z = hidden.new_empty(len(hidden))
        logps = hidden.new_empty(len(hidden))
        for at in range(0, len(hidden), TILE_TOKENS):
            tile = slice(at, at + TILE_TOKENS)
            logits = hidden[tile] @ weight.T
            logps[tile] = logits.gather(-1, targets[tile, None]).squeeze(-1)
            top = logits.amax(-1, keepdim=True)
            logits.sub_(top).exp_()
            log_z[tile] = logits.sum(-1).log_() + top.squeeze(-1)
        ctx.save_for_backward(hidden, weight, targets, log_z)
        return logps - log_z

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, targets, log_z = ctx.saved_tensors
        (grad,) = grads
        wants_weight = ctx.needs_input_grad[1]
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        for at in range(0, len(hidden), TILE_TOKENS):
            tile = slice(at, at + TILE_TOKENS)
            # d logp / d logits = onehot(target) - softmax
            logits = hidden[tile] @ weight.T
            logits.sub_(log_z[tile, None]).exp_().mul_(-grad[tile, None])
            logits.scatter_add_(-1, targets[tile, None], grad[tile, None])
            torch.mm(logits, weight, out=grad_hidden[tile])
            if grad_weight is not None:
                grad_weight.addmm_(logits.T, hidden[tile])
        return grad_hidden, grad_weight, None


def add_completion_head(model: Any, outputs: tuple[str, ...] = ()) -> None:
    """Takes the place of `trl.trainer.utils.add_fused_lm_head` for plain causal models.

    `model(..., labels=labels, fused_lm_head=True)` gives `log_probs` [batch, seq - 1], zero where
    the next label is -100. The other outputs only feed metrics that nothing here reads, and are
    zeros.
    """
    original = model.forward

    @functools.wraps(type(model).forward)
    def forward(
        self: Any, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any
    ) -> Any:
        if not fused_lm_head:
            return original(*args, labels=labels, **kwargs)
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        mask = labels[:, 1:] != -100
        head = self.get_output_embeddings()
        found = _LogProbs.apply(hidden[mask], head.weight, labels[:, 1:][mask])
        log_probs = found.new_zeros(mask.shape).masked_scatter(mask, found)
        zeros = torch.zeros_like(log_probs)
        return FusedCausalLMOutput(
            log_probs=log_probs,
            entropy=zeros,
            mean_logits=zeros,
            is_top1=torch.zeros_like(mask),
            label_mask=mask,
        )

    model.forward = types.MethodType(forward, model)


def suits(model: Any) -> bool:
    """Tell if logits are nothing but hidden @ weight.T: no bias, scale, cap or router loss."""
    config = model.config.get_text_config()
    special = (
        "final_logit_softcapping",
        "logit_scale",
        "output_multiplier",
        "lm_head_multiplier",
        "logits_scaling",
        "output_router_logits",
    )
    head = model.get_output_embeddings()
    return (
        not torch.cuda.is_available()
        and head is not None
        and getattr(head, "bias", None) is None
        and not any(hasattr(config, name) for name in special)
    )
