"""Components of many architectures: how many are found, and whether rows are what hooks give.

    python benchmarks/architectures.py

Tiny random models of transformers' and of our own architectures. Found are attention heads, MLP
neurons, blocks, experts and neurons of experts, against the numbers that the configuration says.
Rows of random masks (outputs of an ablated model) are compared with a model in which hooks written
here do the ablation: inputs of a projection, or what a projection adds to its bias, set to zero.
"""

import warnings

import numpy as np
import reporting
import torch
import transformers as tf
from torch import nn

from coarlib.ablation import ablate, find_components
from coarlib.errors import CoarlibError

SIZE = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24}
GPT = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4}
IMAGE = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 24, "image_size": 8,
         "num_attention_heads": 4, "patch_size": 4}  # fmt: skip
FOUR = {"num_attention_heads": 4}
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2}
SEQ2SEQ = {"vocab_size": 40, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2,
           "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "encoder_attention_heads": 4,
           "decoder_attention_heads": 4}  # fmt: skip
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
STARTS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
KINDS = ("attention_head", "mlp_neuron", "block", "expert", "expert_neuron")

# Architecture: (kind of model, configuration, settings, what it has of each of KINDS).
ARCHITECTURES = {
    "GPT-2": ("lm", "GPT2", GPT, (8, 128, 2, 0, 0)),
    "GPT-J": ("lm", "GPTJ", {**GPT, "rotary_dim": 4}, (8, 128, 2, 0, 0)),
    "CodeGen": ("lm", "CodeGen", {**GPT, "rotary_dim": 4}, (8, 128, 2, 0, 0)),
    "GPT-BigCode": ("lm", "GPTBigCode", GPT, (8, 128, 2, 0, 0)),
    "GPT-Neo": ("lm", "GPTNeo", {"vocab_size": 40, "hidden_size": 16, "num_layers": 2,
                "num_heads": 4, "attention_types": [[["global"], 2]]}, (8, 128, 2, 0, 0)),
    "GPT-NeoX": ("lm", "GPTNeoX", SIZE | FOUR, (8, 48, 2, 0, 0)),
    "Llama": ("lm", "Llama", SIZE | GROUPED, (8, 48, 2, 0, 0)),
    "Mistral": ("lm", "Mistral", SIZE | GROUPED, (8, 48, 2, 0, 0)),
    "Qwen2": ("lm", "Qwen2", SIZE | GROUPED, (8, 48, 2, 0, 0)),
    "Gemma 2": ("lm", "Gemma2", SIZE | GROUPED | {"head_dim": 4}, (8, 48, 2, 0, 0)),
    "Phi": ("lm", "Phi", SIZE | FOUR, (8, 48, 2, 0, 0)),
    "Phi-3": ("lm", "Phi3", SIZE | GROUPED | {"pad_token_id": 0}, (8, 48, 2, 0, 0)),
    "OLMo 2": ("lm", "Olmo2", SIZE | GROUPED, (8, 48, 2, 0, 0)),
    "StableLM": ("lm", "StableLm", SIZE | GROUPED, (8, 48, 2, 0, 0)),
    "BLOOM": ("lm", "Bloom", {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 4},
              (8, 128, 2, 0, 0)),
    "Falcon": ("lm", "Falcon", {**SIZE, **FOUR, "ffn_hidden_size": 24}, (8, 48, 2, 0, 0)),
    "OPT": ("lm", "OPT", {**SIZE, **FOUR, "ffn_dim": 24, "word_embed_proj_dim": 16},
            (8, 48, 2, 0, 0)),
    "MPT": ("lm", "Mpt", {"vocab_size": 40, "d_model": 16, "n_layers": 2, "n_heads": 4},
            (8, 128, 2, 0, 0)),
    "Mixtral": ("lm", "Mixtral", SIZE | GROUPED | {"num_local_experts": 4}, (8, 0, 2, 8, 192)),
    "OLMoE": ("lm", "Olmoe", SIZE | GROUPED | {"num_experts": 4, "num_experts_per_tok": 2,
              "eos_token_id": 1}, (8, 0, 2, 8, 192)),
    "GPT-OSS": ("lm", "GptOss", SIZE | GROUPED | {"head_dim": 4, "num_local_experts": 4},
                (8, 0, 2, 8, 192)),
    "Qwen2-MoE": ("lm", "Qwen2Moe", SIZE | GROUPED | {"num_experts": 4, "moe_intermediate_size": 12,
                  "shared_expert_intermediate_size": 12}, (8, 24, 2, 8, 96)),
    "GraniteMoE": ("lm", "GraniteMoe", SIZE | GROUPED | {"num_local_experts": 4,
                   "num_experts_per_tok": 2}, (8, 0, 2, 8, 192)),
    "Mamba": ("lm", "Mamba", {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2,
              "state_size": 4}, (0, 0, 2, 0, 0)),
    "RWKV": ("lm", "Rwkv", SIZE | {"attention_hidden_size": 16}, (0, 0, 2, 0, 0)),
    "BERT": ("text", "Bert", SIZE | FOUR, (8, 48, 2, 0, 0)),
    "ELECTRA": ("text", "Electra", SIZE | FOUR | {"embedding_size": 8}, (8, 48, 2, 0, 0)),
    "DeBERTa-v2": ("text", "DebertaV2", SIZE | FOUR, (8, 48, 2, 0, 0)),
    "MPNet": ("text", "MPNet", SIZE | FOUR, (8, 48, 2, 0, 0)),
    "DistilBERT": ("text", "DistilBert", {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 4,
                   "hidden_dim": 24}, (8, 48, 2, 0, 0)),
    "ModernBERT": ("text", "ModernBert", SIZE | FOUR | STARTS | {"cls_token_id": 1,
                   "sep_token_id": 2}, (8, 48, 2, 0, 0)),
    "ALBERT": ("text", "Albert", SIZE | FOUR | {"embedding_size": 8}, (4, 24, 1, 0, 0)),
    "T5": ("seq2seq", "T5", T5, (24, 96, 4, 0, 0)),
    "Switch": ("seq2seq", "SwitchTransformers", T5 | {"num_decoder_layers": 2, "num_experts": 4,
               "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
               (24, 48 + 192, 4, 8, 192)),
    "BART": ("seq2seq", "Bart", SEQ2SEQ, (24, 96, 4, 0, 0)),
    "Whisper": ("speech", "Whisper", SEQ2SEQ | STARTS | {"num_mel_bins": 8,
                "max_source_positions": 16, "decoder_start_token_id": 1}, (24, 96, 4, 0, 0)),
    "Wav2Vec2": ("sound", "Wav2Vec2", SIZE | FOUR | {"conv_dim": (8, 8), "conv_stride": (2, 2),
                 "conv_kernel": (3, 3), "num_conv_pos_embeddings": 4, "num_feat_extract_layers": 2,
                 "num_conv_pos_embedding_groups": 2}, (8, 48, 2, 0, 0)),
    "ViT": ("image", "ViT", IMAGE, (8, 48, 2, 0, 0)),
    "DeiT": ("image", "DeiT", IMAGE, (8, 48, 2, 0, 0)),
    "DINOv2": ("image", "Dinov2", IMAGE | {"mlp_ratio": 2}, (8, 64, 2, 0, 0)),
    "CLIP vision": ("image", "CLIPVision", IMAGE, (8, 48, 2, 0, 0)),
    "Swin": ("image", "Swin", {"image_size": 8, "patch_size": 1, "embed_dim": 8, "depths": [2, 2],
             "num_heads": [2, 4], "window_size": 2}, (12, 192, 4, 0, 0)),
    "SegFormer": ("image", "Segformer", {"num_encoder_blocks": 2, "depths": [2, 2],
                  "sr_ratios": [2, 1], "hidden_sizes": [8, 16], "patch_sizes": [3, 3],
                  "strides": [2, 2], "num_attention_heads": [2, 4], "mlp_ratios": [2, 2]},
                  (12, 96, 4, 0, 0)),
    "ConvNeXt": ("image", "ConvNext", {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [2, 2],
                 "patch_size": 2}, (0, 192, 4, 0, 0)),
    "ResNet": ("image", "ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2],
               "layer_type": "basic"}, (0, 0, 4, 0, 0)),
    "torch encoder": ("torch", "", {}, (4, 24, 2, 0, 0)),
}  # fmt: skip


def main():
    torch.manual_seed(0)
    rows = []
    for name, (family, config, settings, expected) in ARCHITECTURES.items():
        model = randomised(built(family, config, settings))
        found, gaps = [], []
        for kind in KINDS:
            components = components_of(model, kind)
            found.append(0 if components is None else len(components))
            if components is not None:
                gaps.append(largest_gap(model, family, components))
        row = {"architecture": name, **dict(zip(KINDS, found, strict=True))}
        rows.append({**row, "as_configured": tuple(found) == expected, "largest_gap": max(gaps)})
    reporting.table("found in each architecture, and largest difference of rows from hooks", rows)
    reporting.save("architectures", {"architectures": rows}, "torch", "transformers")


def built(family, config, settings):
    if family == "torch":
        layer = nn.TransformerEncoderLayer(16, 2, 12, batch_first=True)
        return nn.Sequential(nn.Embedding(40, 16), nn.TransformerEncoder(layer, 2))
    made = getattr(tf, f"{config}Config")(**settings)
    if family == "lm":
        return tf.AutoModelForCausalLM.from_config(made)
    if family == "seq2seq":
        return tf.AutoModelForSeq2SeqLM.from_config(made)
    return tf.AutoModel.from_config(made)


def randomised(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return model.eval()


def inputs_of(family):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 40, (3, 7), generator=generator)
    return {
        "lm": {"input_ids": tokens},
        "text": {"input_ids": tokens},
        "torch": {"input": tokens},
        "seq2seq": {"input_ids": tokens, "decoder_input_ids": tokens},
        "speech": {
            "input_features": torch.randn(3, 8, 32, generator=generator),
            "decoder_input_ids": tokens,
        },
        "sound": {"input_values": torch.randn(3, 200, generator=generator)},
        "image": {"pixel_values": torch.randn(3, 3, 8, 8, generator=generator)},
    }[family]


def components_of(model, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return find_components(model, kind)
        except CoarlibError:
            return None


def main_output(returned):
    if isinstance(returned, torch.Tensor):
        return returned
    logits = getattr(returned, "logits", None)
    return returned.last_hidden_state if logits is None else logits


def size(logits, targets):
    return logits.flatten(1).square().mean(1).sqrt()


def largest_gap(model, family, components, rows=3):
    """Compare rows with hooks written by hand, relative to 1 + the largest output."""
    inputs = inputs_of(family)
    names = list(inputs)

    def predict(network, batch):
        return main_output(network(**dict(zip(names, batch, strict=True))))

    given = (inputs, torch.zeros(3, dtype=torch.long))
    task = ablate(model, given, components, outputs={"size": size}, predict=predict)
    task.prepare(torch.device("cpu"))
    masks = np.random.default_rng(0).random((rows, len(components))) < 0.6
    found = task.rows(np.arange(rows), masks)["size"]
    network, gaps = task.plain_model(), []
    for mask, row in zip(masks, found, strict=True):
        with torch.no_grad(), by_hand(network, components, mask):
            expected = size(predict(network, list(inputs.values())), None)
        gaps.append(float((row - expected).abs().max() / (1 + expected.abs().max())))
    return max(gaps)


def is_called(module):
    """Whether hooks on a projection fire; torch's own attention uses its weights without a call."""
    own = isinstance(module, nn.Linear | nn.Conv2d) or type(module).__name__ == "Conv1D"
    return own and type(module).__name__ != "NonDynamicallyQuantizableLinear"


class by_hand:
    """Ablate by hooks on projections; fused experts, which have none, by hand in their weights."""

    def __init__(self, network, components, mask):
        self.network, self.undo = network, []
        first = 0
        for group in components:
            kept = torch.from_numpy(mask[first : first + group.units])
            first += group.units
            if not kept.all():
                self.ablate(group, kept)

    def ablate(self, group, kept):
        if hasattr(group, "slices"):
            for path in (piece.path for piece in group.slices):
                self.silence(path)
        elif group.parameter != "weight":
            self.cut(group, kept)
        elif not is_called(self.network.get_submodule(group.module)):
            silent = (~kept).repeat_interleave(group.width)
            self.cut_parameter(group.path, lambda weight: weight.masked_fill_(silent, 0))
        else:
            silent = ~kept.repeat_interleave(group.width)
            module = self.network.get_submodule(group.module)
            self.undo.append(module.register_forward_pre_hook(
                lambda m, args: (args[0].masked_fill(silent, 0), *args[1:])).remove)  # fmt: skip

    def silence(self, path):
        module = self.network.get_submodule(path.rpartition(".")[0])
        if not path.endswith(".weight") or not is_called(module):
            self.cut_parameter(path, lambda x: x.zero_())
            return

        def hook(m, args, output):
            bias = torch.zeros(()) if m.bias is None else m.bias
            bias = bias.reshape(-1, 1, 1) if isinstance(m, nn.Conv2d) and bias.ndim else bias
            return torch.zeros_like(output) + bias

        self.undo.append(module.register_forward_hook(hook).remove)

    def cut(self, group, kept):
        def change(parameter):
            for unit in (~kept).nonzero()[:, 0].tolist():
                if group.inner is None:
                    parameter[unit] = 0
                    continue
                axis, length = group.inner
                parameter[unit // length].select(axis - 1, unit % length).zero_()

        self.cut_parameter(group.path, change)

    def cut_parameter(self, path, change):
        parameter = self.network.get_parameter(path)
        before = parameter.detach().clone()
        with torch.no_grad():
            change(parameter)
        self.undo.append(lambda: parameter.data.copy_(before))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for undo in self.undo:
            undo()


if __name__ == "__main__":
    main()
