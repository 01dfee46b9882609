"""Decoder-only transformers with a member axis, read at the last position of a row."""

from collections.abc import Sequence
from typing import Any, Literal, Self, final, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from grok_lightning.networks.layers import MemberEmbedding, MemberLayerNorm, MemberLinear
from grok_lightning.networks.mlp import ACTIVATIONS
from grok_lightning.networks.network import Network

__all__ = ["TransformerLayer", "TransformerNetwork"]

IN_TRANSFORMER_LENS = ("relu", "gelu")
"""Activations that TransformerLens has, by the same names."""


@final
class TransformerLayer(nn.Module):
    """Causal attention and a multi-layer perceptron, each added to the residual stream.

    Attributes:
        query: To ``n_heads * d_head`` features, and likewise ``key`` and ``value``; scores are scaled by 1/√d_head.
        attention: From the heads' values back to the residual stream.
        mlp_in: From the residual stream to the neurons.
        mlp_out: From the neurons to the residual stream.
        attention_norm: Before attention, where there is LayerNorm.
        mlp_norm: Before the neurons, where there is LayerNorm.

    """

    def __init__(
        self,
        n_members: int,
        d_model: int,
        n_heads: int,
        d_head: int,
        d_mlp: int,
        activation: str,
        mlp_bias: bool,
        attention_bias: bool,
        layer_norm: bool,
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.d_head = d_head
        self.activate = ACTIVATIONS[activation]
        width = n_heads * d_head
        self.attention_norm = MemberLayerNorm(n_members, d_model) if layer_norm else nn.Identity()
        self.query = MemberLinear(n_members, d_model, width, attention_bias)
        self.key = MemberLinear(n_members, d_model, width, attention_bias)
        self.value = MemberLinear(n_members, d_model, width, attention_bias)
        self.attention = MemberLinear(n_members, width, d_model, attention_bias)
        self.mlp_norm = MemberLayerNorm(n_members, d_model) if layer_norm else nn.Identity()
        self.mlp_in = MemberLinear(n_members, d_model, d_mlp, mlp_bias)
        self.mlp_out = MemberLinear(n_members, d_mlp, d_model, mlp_bias)

    def heads(self, features: Tensor) -> Tensor:
        """Return features ``(..., n_heads * d_head)`` as ``(..., n_heads, d_head)``."""
        return features.reshape(*features.shape[:-1], self.n_heads, self.d_head)

    def add(self, residual: Tensor, mixed: Tensor) -> Tensor:
        """Add what attention has mixed, and then what the neurons make of it.

        Args:
            residual: ``(E, N, d_model)``, or ``(E, 1, d_model)`` where it is the same for all rows.
            mixed: ``(E, N, n_heads * d_head)``.

        """
        residual = residual + self.attention(mixed)
        neurons = self.activate(self.mlp_in(self.mlp_norm(residual)))
        added: Tensor = residual + self.mlp_out(neurons)
        return added


@final
class TransformerNetwork(Network):
    """E decoder-only transformers that read rows of T tokens and answer at the last one.

    One layer with the default sizes is the network of Varma et al. 2023 (arXiv 2309.02390) and of Nanda et al. 2023
    (arXiv 2301.05217), as far as their texts and code tell: learned positions, embedding and output untied, ReLU
    neurons with biases, no LayerNorm (with it: before attention, before the neurons and before the output), all weights
    drawn from N(0, 1/d_model) but those of the output, which are from N(0, 1/n_outputs), all biases 0.

    Since only the last position is read, ``forward`` does not compute what nobody reads, and nothing twice: in the last
    layer query, attention, neurons and output are computed at the last position alone; in the first layer, where keys,
    values and queries depend on nothing but (position, token), they are computed once for every such pair and looked
    up. On the CPU a position that has the same token in all rows counts as one pair. Logits are those of the textbook,
    up to rounding. Forward hooks therefore see the last position only in the last layer, and tables of pairs in the
    first; ``network(inputs, cache=True)`` computes everything, everywhere, and returns it.

    Args:
        n_tokens: Number of distinct tokens.
        n_positions: T, number of tokens of a row.
        n_outputs: Number of logits C.
        generators: One CPU generator a member, for the initial weights; their number is E.
        d_model: Width of the residual stream.
        n_heads: Number of attention heads.
        d_head: Width of a head; ``d_model / n_heads`` if ``None``.
        d_mlp: Number of neurons of a layer; ``4 * d_model`` if ``None``.
        n_layers: Depth.
        activation: One of ``relu``, ``square``, ``gelu``, ``tanh``, ``identity``.
        mlp_bias: Whether neurons and what they write have biases.
        attention_bias: Whether query, key, value and attention output have.
        output_bias: Whether the logits have.
        layer_norm: Whether there is LayerNorm.

    Attributes:
        embed: ``weight (E, n_tokens, d_model)``.
        positions: ``weight (E, T, d_model)``.
        layers: Named ``layers.0``, ``layers.1``, ...; see :class:`TransformerLayer`.
        norm: Before the output, where there is LayerNorm.
        output: To the logits.

    Raises:
        ValueError: If a size is below 1, there is no member, the heads do not divide the width, or the activation is
            unknown.

    """

    def __init__(
        self,
        n_tokens: int,
        n_positions: int,
        n_outputs: int,
        generators: Sequence[torch.Generator],
        d_model: int = 128,
        n_heads: int = 4,
        d_head: int | None = None,
        d_mlp: int | None = None,
        n_layers: int = 1,
        activation: str = "relu",
        mlp_bias: bool = True,
        attention_bias: bool = False,
        output_bias: bool = False,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        sizes = {
            "n_tokens": n_tokens,
            "n_positions": n_positions,
            "n_outputs": n_outputs,
            "d_model": d_model,
            "n_heads": n_heads,
            "d_head": 1 if d_head is None else d_head,
            "d_mlp": 1 if d_mlp is None else d_mlp,
            "n_layers": n_layers,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        if d_head is None and d_model % n_heads:
            raise ValueError(f"d_model: {d_model} cannot be divided among {n_heads} heads; change one, or give d_head")
        if not generators:
            raise ValueError("generators: expected one a member, got none")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got '{activation}'")
        self.n_members = len(generators)
        self.n_tokens = n_tokens
        self.n_positions = n_positions
        self.n_outputs = n_outputs
        self.d_model = d_model
        self.n_heads = n_heads
        self.d_head = d_head or d_model // n_heads
        self.d_mlp = d_mlp or 4 * d_model
        self.activation = activation
        self.mlp_bias = mlp_bias
        self.attention_bias = attention_bias
        self.output_bias = output_bias
        self.layer_norm = layer_norm
        self.embed = MemberEmbedding(self.n_members, n_tokens, d_model)
        self.positions = MemberEmbedding(self.n_members, n_positions, d_model)
        self.layers = nn.ModuleList(
            TransformerLayer(
                self.n_members,
                d_model,
                n_heads,
                self.d_head,
                self.d_mlp,
                activation,
                mlp_bias,
                attention_bias,
                layer_norm,
            )
            for _ in range(n_layers)
        )
        self.norm = MemberLayerNorm(self.n_members, d_model) if layer_norm else nn.Identity()
        self.output = MemberLinear(self.n_members, d_model, n_outputs, output_bias)
        self._draw(generators)

    @torch.no_grad()
    def _draw(self, generators: Sequence[torch.Generator]) -> None:
        for name, parameter in self.named_parameters():
            if not name.endswith("weight") or "norm" in name:
                continue  # biases are 0, and a LayerNorm begins as it is made
            scale = (self.n_outputs if name.startswith("output") else self.d_model) ** -0.5
            for e, generator in enumerate(generators):
                # In float32 on the CPU whatever the defaults are: a seed means the same weights everywhere.
                values = torch.empty(parameter.shape[1:], dtype=torch.float32, device="cpu")
                parameter[e].copy_(values.normal_(generator=generator) * scale)

    @overload
    def forward(self, inputs: Tensor, cache: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(self, inputs: Tensor, cache: Literal[True]) -> tuple[Tensor, dict[str, Tensor]]: ...

    def forward(self, inputs: Tensor, cache: bool = False) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return logits ``(E, B, C)``, and with ``cache`` all activations, computed the textbook way.

        Args:
            inputs: Tokens, integers: ``(B, T)`` shared by all members, or ``(E, B, T)``.
            cache: Whether to return activations too: ``embed``, ``(E, B, T, d_model)``, tokens and positions; and of
                every layer, as ``layers.0.q`` and so on: ``q``, ``k``, ``v``, ``(E, B, T, n_heads, d_head)``;
                ``pattern``, ``(E, B, n_heads, T, T)``, rows are queries; ``mlp_pre`` and ``mlp_post``,
                ``(E, B, T, d_mlp)``; ``resid``, ``(E, B, T, d_model)``, the residual stream after the layer.

        Raises:
            ValueError: If the inputs are no integers, or of another shape.

        """
        tokens = self._tokens(inputs)
        if cache:
            return self._textbook(tokens)
        if self.n_positions == 1:
            # Nothing to leave out but scores, which say nothing here: theirs is a gradient of 0, not none, so that
            # queries and keys decay like everything else.
            return self._textbook(tokens)[0]
        residual = self._first_and_last(tokens) if len(self.layers) == 1 else self._deep(tokens)
        logits: Tensor = self.output(self.norm(residual))
        return logits

    def _tokens(self, inputs: Tensor) -> Tensor:
        """Return tokens ``(E, B, T)``, or ``(1, B, T)`` where all members share them."""
        if inputs.is_floating_point() or inputs.dtype == torch.bool:
            raise ValueError(f"expected rows of tokens, integers, got inputs of type {inputs.dtype}")
        shared = inputs.unsqueeze(0) if inputs.ndim == 2 else inputs
        if shared.ndim != 3 or shared.shape[2] != self.n_positions or not (inputs.ndim == 2 or self._leads(inputs)):
            raise ValueError(
                f"expected inputs (B, {self.n_positions}) shared by all members or (E, B, {self.n_positions}) with "
                f"E = {self.n_members}, got {tuple(inputs.shape)}"
            )
        return shared.long()

    def _leads(self, inputs: Tensor) -> bool:
        return inputs.shape[0] == self.n_members

    def check_inputs(self, inputs: Tensor) -> None:
        """Refuse tokens that there is no embedding for; looks at the values, so call it once.

        Raises:
            ValueError: If the inputs are no integers, of another shape, or out of range.

        """
        tokens = self._tokens(inputs)
        if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= self.n_tokens):
            raise ValueError(
                f"expected tokens in [0, {self.n_tokens}), for which this network was built, "
                f"got {int(tokens.min())} to {int(tokens.max())}"
            )

    # ---- the fast way --------------------------------------------------------------------------------------------

    def _first_and_last(self, tokens: Tensor) -> Tensor:
        """Return the residual stream ``(E, B, d_model)`` at the last position after a layer that is the only one."""
        layer = self._layer(0)
        columns = self._columns(tokens)
        pairs = torch.cat([self._pairs(position, column) for position, column in enumerate(columns)], dim=1)
        counts = [self.n_tokens if column.ndim else 1 for column in columns]
        normed = layer.attention_norm(pairs)
        last = torch.split(normed, counts, dim=1)[-1]
        keys, values = (torch.split(layer.heads(map_(normed)), counts, dim=1) for map_ in (layer.key, layer.value))
        query = layer.heads(layer.query(last)) * layer.d_head**-0.5
        shared = columns[-1].ndim == 0
        if not shared:
            query = _look_up(query, columns[-1])
        scores = [
            # A query that all rows share makes the score, too, a property of the pair.
            _look_up((query * key).sum(dim=-1), column) if shared else (query * _look_up(key, column)).sum(dim=-1)
            for key, column in zip(keys, columns, strict=True)
        ]
        n_rows = tokens.shape[1]
        pattern = torch.stack([score.expand(-1, n_rows, -1) for score in scores], dim=2).softmax(dim=2).unsqueeze(-1)
        # Shares sum to 1: what the last position has, and what the others have more than it.
        own = _look_up(values[-1], columns[-1])
        mixed = own
        for position, (value, column) in enumerate(zip(values[:-1], columns[:-1], strict=True)):
            more = _look_up(value - own, column) if shared else _look_up(value, column) - own
            mixed = torch.addcmul(mixed, pattern[:, :, position], more)
        residual = _look_up(torch.split(pairs, counts, dim=1)[-1], columns[-1])
        return layer.add(residual, mixed.flatten(2).expand(-1, n_rows, -1))

    def _deep(self, tokens: Tensor) -> Tensor:
        """Return the residual stream ``(E, B, d_model)`` at the last position after several layers."""
        first, *middle, last = (self._layer(i) for i in range(len(self.layers)))
        n_rows = tokens.shape[1]
        columns = self._columns(tokens)
        tables = [self._pairs(position, column) for position, column in enumerate(columns)]
        normed = [first.attention_norm(table) for table in tables]

        def everywhere(pairs: Sequence[Tensor]) -> Tensor:
            """Look up what belongs to each position's tokens: ``(E, B, T, ...)``."""
            rows = [_look_up(table, column) for table, column in zip(pairs, columns, strict=True)]
            return torch.stack([row.expand(-1, n_rows, *row.shape[2:]) for row in rows], dim=2)

        q, k, v = (
            everywhere([first.heads(map_(table)) for table in normed]) for map_ in (first.query, first.key, first.value)
        )
        residual = _add_everywhere(first, everywhere(tables), _attend(q, k, v))
        for layer in middle:
            x = layer.attention_norm(residual)
            q, k, v = (layer.heads(_everywhere(map_, x)) for map_ in (layer.query, layer.key, layer.value))
            residual = _add_everywhere(layer, residual, _attend(q, k, v))
        x = last.attention_norm(residual)
        k, v = (last.heads(_everywhere(map_, x)) for map_ in (last.key, last.value))
        query = last.heads(last.query(x[:, :, -1])).unsqueeze(2)
        mixed = _attend(query, k, v, causal=False)
        return last.add(residual[:, :, -1], mixed.squeeze(2).flatten(2))

    def _columns(self, tokens: Tensor) -> list[Tensor]:
        """Return the tokens of each position, ``(E or 1, B)``, or ``()`` where all rows share one."""
        columns = list(tokens.unbind(dim=2))
        # To look at values would make a GPU wait, and break a compiled graph.
        if tokens.device.type != "cpu" or torch.compiler.is_compiling() or not tokens.shape[1]:
            return columns
        same = (tokens == tokens[:1, :1]).flatten(0, 1).all(dim=0).tolist()
        return [column[0, 0] if one else column for column, one in zip(columns, same, strict=True)]

    def _pairs(self, position: int, column: Tensor) -> Tensor:
        """Return the residual stream of a position with each token, ``(E, n_tokens or 1, d_model)``."""
        embedded = self.embed.weight if column.ndim else self.embed.weight.index_select(1, column.reshape(1))
        return embedded + self.positions.weight[:, position : position + 1]

    # ---- the textbook way ----------------------------------------------------------------------------------------

    def _textbook(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        length = tokens.shape[2]
        tokens = tokens.expand(self.n_members, -1, -1)
        residual = self.embed(tokens) + self.positions.weight.unsqueeze(1)
        future = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        found = {"embed": residual}
        for i in range(len(self.layers)):
            layer = self._layer(i)
            x = layer.attention_norm(residual)
            q, k, v = (layer.heads(_everywhere(map_, x)) for map_ in (layer.query, layer.key, layer.value))
            scores = torch.einsum("ebqhd,ebkhd->ebhqk", q, k) * layer.d_head**-0.5
            pattern = scores.masked_fill(future, -torch.inf).softmax(dim=-1)
            mixed = torch.einsum("ebhqk,ebkhd->ebqhd", pattern, v).flatten(3)
            residual = residual + _everywhere(layer.attention, mixed)
            before = _everywhere(layer.mlp_in, layer.mlp_norm(residual))
            after = layer.activate(before)
            residual = residual + _everywhere(layer.mlp_out, after)
            kept = {"q": q, "k": k, "v": v, "pattern": pattern, "mlp_pre": before, "mlp_post": after, "resid": residual}
            found |= {f"layers.{i}.{name}": value for name, value in kept.items()}
        logits = self.output(self.norm(residual[:, :, -1]))
        return logits, found

    def _layer(self, index: int) -> TransformerLayer:
        layer = self.layers[index]
        assert isinstance(layer, TransformerLayer)
        return layer

    # ---- as others see it ----------------------------------------------------------------------------------------

    @property
    def rows_at_once(self) -> int:
        """Number of rows with about four mebibytes of neurons, measured best on the CPU."""
        return max(16, 2**20 // (self.n_members * self.d_mlp))

    def like(self, n_members: int) -> Self:
        """Return a network of the same shape for ``n_members`` members, with weights of no meaning."""
        return type(self)(
            n_tokens=self.n_tokens,
            n_positions=self.n_positions,
            n_outputs=self.n_outputs,
            generators=[torch.Generator() for _ in range(n_members)],
            d_model=self.d_model,
            n_heads=self.n_heads,
            d_head=self.d_head,
            d_mlp=self.d_mlp,
            n_layers=len(self.layers),
            activation=self.activation,
            mlp_bias=self.mlp_bias,
            attention_bias=self.attention_bias,
            output_bias=self.output_bias,
            layer_norm=self.layer_norm,
        )

    def to_transformer_lens(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return a network of one member as TransformerLens has it: the arguments of a config, and a state dict.

        Both are those of its ``HookedTransformer``, which computes the same logits, at every position; ours are those
        of the last. With TransformerLens 2 or 3 (all that is missing from the state dict are buffers of its own)::

            config, weights = network.member(0).to_transformer_lens()
            lens = HookedTransformer(HookedTransformerConfig(**config))
            lens.load_state_dict(weights, strict=False)
            logits = lens(tokens)[:, -1]

        In version 4, which has that class no longer, with ``convert_tl_checkpoint`` from
        ``transformer_lens.utilities.tl_checkpoint_conversion``::

            lens = TransformerBridge.boot_native(config, device=config["device"], dtype=config["dtype"])
            lens.load_state_dict(convert_tl_checkpoint(weights, lens.cfg))

        Biases that the network does not have are zeros there. Weights are copies, on the same device.

        Returns:
            Plain values by the names of ``HookedTransformerConfig``'s arguments; and tensors by the names of
            ``HookedTransformer``'s parameters, heads apart: ``blocks.0.attn.W_Q (n_heads, d_model, d_head)``,
            ``blocks.0.attn.W_O (n_heads, d_head, d_model)``, ``blocks.0.mlp.W_in (d_model, d_mlp)``,
            ``unembed.W_U (d_model, C)``, and so on.

        Raises:
            ValueError: If there is more than one member, or TransformerLens has no such activation.

        """
        if self.n_members != 1:
            raise ValueError(
                f"to_transformer_lens: {self.n_members} members; choose one by member(index).to_transformer_lens()"
            )
        if self.activation not in IN_TRANSFORMER_LENS:
            raise ValueError(
                f"to_transformer_lens: TransformerLens has {' and '.join(IN_TRANSFORMER_LENS)}, and no activation "
                f"'{self.activation}'"
            )
        config = {
            "n_layers": len(self.layers),
            "d_model": self.d_model,
            "n_ctx": self.n_positions,
            "d_head": self.d_head,
            "n_heads": self.n_heads,
            "d_mlp": self.d_mlp,
            "d_vocab": self.n_tokens,
            "d_vocab_out": self.n_outputs,
            "act_fn": self.activation,
            "normalization_type": None,
            "positional_embedding_type": "standard",
            "attention_dir": "causal",
            "init_weights": False,
            "dtype": self.embed.weight.dtype,
            "device": str(self.embed.weight.device),
        }
        if isinstance(self.norm, MemberLayerNorm):
            config |= {"normalization_type": "LN", "eps": self.norm.eps}
        weights = {"embed.W_E": self.embed.weight[0], "pos_embed.W_pos": self.positions.weight[0]}
        for i in range(len(self.layers)):
            weights |= {f"blocks.{i}.{name}": value for name, value in _layer_in_lens(self._layer(i)).items()}
        weights |= _norm_in_lens("ln_final", self.norm)
        weights |= {"unembed.W_U": self.output.weight[0].T, "unembed.b_U": _bias(self.output)}
        copies = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in weights.items()}
        return config, copies


def _layer_in_lens(layer: TransformerLayer) -> dict[str, Tensor]:
    """Return the weights of an only member's layer by TransformerLens's names, heads apart."""
    heads = (layer.n_heads, layer.d_head)
    weights = {
        **_norm_in_lens("ln1", layer.attention_norm),
        **_norm_in_lens("ln2", layer.mlp_norm),
        "attn.W_O": layer.attention.weight[0].T.reshape(*heads, -1),
        "attn.b_O": _bias(layer.attention),
        "mlp.W_in": layer.mlp_in.weight[0].T,
        "mlp.b_in": _bias(layer.mlp_in),
        "mlp.W_out": layer.mlp_out.weight[0].T,
        "mlp.b_out": _bias(layer.mlp_out),
    }
    for name, map_ in (("Q", layer.query), ("K", layer.key), ("V", layer.value)):
        weights[f"attn.W_{name}"] = map_.weight[0].reshape(*heads, -1).mT
        weights[f"attn.b_{name}"] = _bias(map_).reshape(heads)
    return weights


def _norm_in_lens(name: str, norm: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.w": norm.weight[0], f"{name}.b": norm.bias[0]} if isinstance(norm, MemberLayerNorm) else {}


def _bias(map_: MemberLinear) -> Tensor:
    """Return the bias of an only member, zeros if there is none."""
    return map_.weight.new_zeros(map_.out_features) if map_.bias is None else map_.bias[0]


def _look_up(table: Tensor, column: Tensor) -> Tensor:
    """Return each row's entry of a table.

    Args:
        table: ``(E, n_tokens, ...)``, or ``(E, 1, ...)``, the entry of the one token that all rows share.
        column: Tokens, ``(E or 1, B)``, or ``()``.

    Returns:
        ``(E, B, ...)``, or ``(E, 1, ...)``.

    """
    if column.ndim == 0:
        return table
    n_members, n_tokens = table.shape[:2]
    rows = column
    if n_members > 1:
        rows = column + n_tokens * torch.arange(n_members, device=column.device).unsqueeze(1)
    # Not an index: the gradient of an embedding is several times as fast.
    found = nnf.embedding(rows, table.flatten(0, 1).flatten(1))
    return found.reshape(*found.shape[:2], *table.shape[2:])


def _everywhere(map_: nn.Module, x: Tensor) -> Tensor:
    """Apply a map of ``(E, N, in)`` at all positions: ``(E, B, T, in)`` to ``(E, B, T, out)``."""
    mapped: Tensor = map_(x.flatten(1, 2))
    return mapped.reshape(*x.shape[:3], mapped.shape[-1])


def _add_everywhere(layer: TransformerLayer, residual: Tensor, mixed: Tensor) -> Tensor:
    added = layer.add(residual.flatten(1, 2), mixed.flatten(3).flatten(1, 2))
    return added.reshape(residual.shape)


def _attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """Return the values that heads mix, ``(E, B, Q, n_heads, d_head)``, for queries ``(E, B, Q, n_heads, d_head)``."""
    shape = q.shape
    q, k, v = (x.transpose(2, 3).flatten(0, 1) for x in (q, k, v))
    mixed = nnf.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return mixed.transpose(1, 2).reshape(shape)
