"""Components of many architectures: how many are found, and whether rows are what hooks give.

    python benchmarks/architectures.py

Tiny random models of transformers' and of our own architectures. Found are attention heads, MLP
neurons, blocks, experts, neurons of experts, hidden units of recurrent layers and filters, against
the numbers that the configuration says. Blocks past which nothing goes are refused by name.
Rows of random masks (outputs of an ablated model) are compared with a model in which hooks written
here do the ablation: inputs of a projection, or what a projection adds to its bias, set to zero.
"""

import re
import warnings

import numpy as np
import reporting
import torch
import transformers as tf
from torch import nn

from coarlib.ablation import ablate, find_components
from coarlib.errors import CoarlibError, ComponentError

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
LAYERS = nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d
STARTS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
KINDS = ("attention_head", "mlp_neuron", "block", "expert", "expert_neuron", "hidden_unit",
         "conv_filter")  # fmt: skip
SOUND = {"conv_dim": (8, 8), "conv_stride": (2, 2), "conv_kernel": (3, 3),
         "num_conv_pos_embeddings": 4, "num_feat_extract_layers": 2,
         "num_conv_pos_embedding_groups": 2}  # fmt: skip
LATENT = {"num_attention_heads": 4, "num_key_value_heads": 4, "n_routed_experts": 4,
          "num_experts_per_tok": 2, "moe_intermediate_size": 12, "q_lora_rank": 8,
          "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4,
          "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
          "n_shared_experts": 1}  # fmt: skip

# Architecture: (kind of model, configuration, settings, what it has of each of KINDS). Of
# hidden units there are none where no number stands; filters are counted from the weights.
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
    "Qwen3-MoE": ("lm", "Qwen3Moe", SIZE | GROUPED | {"head_dim": 4, "num_experts": 4,
                  "num_experts_per_tok": 2, "moe_intermediate_size": 12}, (8, 0, 2, 8, 96)),
    "DeepSeek-V3": ("lm", "DeepseekV3", SIZE | LATENT, (8, 24 + 12, 2, 4, 48)),
    "Llama 4": ("lm", "Llama4Text", SIZE | GROUPED | {"head_dim": 4, "num_local_experts": 4,
                "intermediate_size_mlp": 24, "pad_token_id": 0}, (8, 48, 2, 8, 192)),
    "Gemma": ("lm", "Gemma", SIZE | GROUPED | {"head_dim": 4}, (8, 48, 2, 0, 0)),
    "Gemma 3": ("lm", "Gemma3Text", SIZE | GROUPED | {"head_dim": 4}, (8, 48, 2, 0, 0)),
    "Qwen3": ("lm", "Qwen3", SIZE | GROUPED | {"head_dim": 4}, (8, 48, 2, 0, 0)),
    "Cohere": ("lm", "Cohere", SIZE | GROUPED | STARTS, (8, 48, 2, 0, 0)),
    "Granite": ("lm", "Granite", SIZE | GROUPED, (8, 48, 2, 0, 0)),
    "StarCoder 2": ("lm", "Starcoder2", SIZE | GROUPED | STARTS, (8, 48, 2, 0, 0)),
    "XGLM": ("lm", "XGLM", {"vocab_size": 40, "d_model": 16, "num_layers": 2, "attention_heads": 4,
             "ffn_dim": 24}, (8, 48, 2, 0, 0)),
    "Jamba": ("lm", "Jamba", SIZE | GROUPED | {"attn_layer_period": 2, "attn_layer_offset": 1,
              "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 4,
              "mamba_d_state": 4, "mamba_dt_rank": 4}, (4, 24, 2, 4, 96)),
    "RecurrentGemma": ("lm", "RecurrentGemma", SIZE | GROUPED | {"num_hidden_layers": 3,
                       "lru_width": 16, "attention_window_size": 8}, (4, 36, 3, 0, 0)),
    "Mamba 2": ("lm", "Mamba2", {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2,
                "state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
                (8, 0, 2, 0, 0)),
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
    "RoBERTa": ("text", "Roberta", SIZE | FOUR | {"pad_token_id": 0}, (8, 48, 2, 0, 0)),
    "DeBERTa": ("text", "Deberta", SIZE | FOUR, (8, 48, 2, 0, 0)),
    "Longformer": ("text", "Longformer", SIZE | FOUR | {"attention_window": 4, "pad_token_id": 0},
                   (8, 48, 2, 0, 0)),
    "XLNet": ("text", "XLNet", {"vocab_size": 40, "d_model": 16, "n_layer": 2, "n_head": 4,
              "d_inner": 24}, (8, 48, 2, 0, 0)),
    "FNet": ("text", "FNet", SIZE, (0, 48, 2, 0, 0)),
    "ALBERT": ("text", "Albert", SIZE | FOUR | {"embedding_size": 8}, (4, 24, 1, 0, 0)),
    "T5": ("seq2seq", "T5", T5, (24, 96, 4, 0, 0)),
    "Switch": ("seq2seq", "SwitchTransformers", T5 | {"num_decoder_layers": 2, "num_experts": 4,
               "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
               (24, 48 + 192, 4, 8, 192)),
    "BART": ("seq2seq", "Bart", SEQ2SEQ, (24, 96, 4, 0, 0)),
    "Pegasus": ("seq2seq", "Pegasus", SEQ2SEQ, (24, 96, 4, 0, 0)),
    "LED": ("seq2seq", "LED", SEQ2SEQ | {"attention_window": 4}, (24, 96, 4, 0, 0)),
    "Whisper": ("speech", "Whisper", SEQ2SEQ | STARTS | {"num_mel_bins": 8,
                "max_source_positions": 16, "decoder_start_token_id": 1}, (24, 96, 4, 0, 0)),
    "Wav2Vec2": ("sound", "Wav2Vec2", SIZE | FOUR | SOUND, (8, 48, 2, 0, 0)),
    "HuBERT": ("sound", "Hubert", SIZE | FOUR | SOUND, (8, 48, 2, 0, 0)),
    "WavLM": ("sound", "WavLM", SIZE | FOUR | SOUND, (8, 48, 2, 0, 0)),
    "ViT": ("image", "ViT", IMAGE, (8, 48, 2, 0, 0)),
    "DeiT": ("image", "DeiT", IMAGE, (8, 48, 2, 0, 0)),
    "DINOv2": ("image", "Dinov2", IMAGE | {"mlp_ratio": 2}, (8, 64, 2, 0, 0)),
    "CLIP vision": ("image", "CLIPVision", IMAGE, (8, 48, 2, 0, 0)),
    "Swin": ("image", "Swin", {"image_size": 8, "patch_size": 1, "embed_dim": 8, "depths": [2, 2],
             "num_heads": [2, 4], "window_size": 2}, (12, 192, 4, 0, 0)),
    "Swin 2": ("image", "Swinv2", {"image_size": 8, "patch_size": 1, "embed_dim": 8,
               "depths": [2, 2], "num_heads": [2, 4], "window_size": 2}, (12, 192, 4, 0, 0)),
    "SigLIP vision": ("image", "SiglipVision", IMAGE | {"vision_use_head": False},
                      (8, 48, 2, 0, 0)),
    "BEiT": ("image", "Beit", IMAGE, (8, 48, 2, 0, 0)),
    "SegFormer": ("image", "Segformer", {"num_encoder_blocks": 2, "depths": [2, 2],
                  "sr_ratios": [2, 1], "hidden_sizes": [8, 16], "patch_sizes": [3, 3],
                  "strides": [2, 2], "num_attention_heads": [2, 4], "mlp_ratios": [2, 2]},
                  (12, 96, 4, 0, 0)),
    "ConvNeXt": ("image", "ConvNext", {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [2, 2],
                 "patch_size": 2}, (0, 192, 4, 0, 0)),
    "ResNet": ("image", "ResNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2],
               "layer_type": "basic"}, (0, 0, 4, 0, 0)),
    "RegNet": ("image", "RegNet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 2],
               "groups_width": 4}, (0, 0, 4, 0, 0)),
    "PoolFormer": ("image", "PoolFormer", {"hidden_sizes": [8, 16], "depths": [1, 2],
                   "num_encoder_blocks": 2, "patch_sizes": [3, 3], "strides": [2, 2],
                   "padding": [1, 1]}, (0, 0, 3, 0, 0)),
    "EfficientNet": ("photo", "EfficientNet", {"image_size": 32, "width_coefficient": 0.25,
                     "depth_coefficient": 0.5, "hidden_dim": 320}, (0, 0, 3, 0, 0)),
    "MobileNetV2": ("photo", "MobileNetV2", {"depth_multiplier": 0.25}, (0, 0, 10, 0, 0)),
    "U-Net": ("own", "UNet", {}, (0, 0, 0, 0, 0)),
    "LSTM": ("own", "Recurrent", {"kind": nn.LSTM}, (0, 0, 0, 0, 0, 12)),
    "LSTM, two layers, both ways": ("own", "Recurrent", {"kind": nn.LSTM, "num_layers": 2,
                                    "bidirectional": True}, (0, 0, 0, 0, 0, 48)),
    "LSTM with projection": ("own", "Recurrent", {"kind": nn.LSTM, "proj_size": 5},
                             (0, 0, 0, 0, 0, 12)),
    "GRU, two layers": ("own", "Recurrent", {"kind": nn.GRU, "num_layers": 2},
                        (0, 0, 0, 0, 0, 24)),
    "RNN, both ways": ("own", "Recurrent", {"kind": nn.RNN, "bidirectional": True},
                       (0, 0, 0, 0, 0, 24)),
    "torch encoder": ("torch", "", {}, (4, 24, 2, 0, 0)),
}  # fmt: skip


class Recurrent(nn.Module):
    """Reads a picture row by row."""

    def __init__(self, kind, **settings):
        super().__init__()
        self.recurrent = kind(24, 12, batch_first=True, **settings)
        width = settings.get("proj_size", 12) * (1 + self.recurrent.bidirectional)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.recurrent(x.transpose(1, 2).flatten(2))[0])


class UNet(nn.Module):
    """Down and up again, with what was there before beside it."""

    def __init__(self):
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.middle = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.up, self.leave = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        first = self.enter(x).relu()
        deep = self.up(self.middle(self.down(first).relu())).relu()
        return self.leave(torch.cat([first, deep], 1))


def main():
    torch.manual_seed(0)
    rows = []
    for name, (family, config, settings, expected) in ARCHITECTURES.items():
        model = randomised(built(family, config, settings))
        found, gaps, refused = [], [], []
        for kind in KINDS:
            components = components_of(model, kind)
            if kind == "block" and components is not None:
                refused = refused_blocks(model, family, components)
                components = components_of(model, kind, refused)
            found.append(0 if components is None else len(components))
            if components is not None:
                gaps.append(largest_gap(model, family, components))
        row = {"architecture": name, **dict(zip(KINDS, found, strict=True))}
        has = (*expected, *[0] * (len(KINDS) - 1 - len(expected)), filters_of(model))
        row |= {"as_configured": tuple(found) == has, "refused_blocks": len(refused)}
        rows.append({**row, "largest_gap": max(gaps)})
    reporting.table("found in each architecture, and largest difference of rows from hooks", rows)
    reporting.save("architectures", {"architectures": rows}, "torch", "transformers")


def built(family, config, settings):
    if family == "torch":
        layer = nn.TransformerEncoderLayer(16, 2, 12, batch_first=True)
        return nn.Sequential(nn.Embedding(40, 16), nn.TransformerEncoder(layer, 2))
    if family == "own":
        return {"UNet": UNet, "Recurrent": Recurrent}[config](**settings)
    made = getattr(tf, f"{config}Config")(**settings)
    if family == "lm":
        return tf.AutoModelForCausalLM.from_config(made)
    if family == "seq2seq":
        return tf.AutoModelForSeq2SeqLM.from_config(made)
    return tf.AutoModel.from_config(made)


def randomised(model):
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 3 else 22
            parameter.copy_(torch.randn(parameter.shape) * (2 / fan_in) ** 0.5)
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
        "photo": {"pixel_values": torch.randn(3, 3, 64, 64, generator=generator)},
        "own": {"x": torch.randn(3, 3, 8, 8, generator=generator)},
    }[family]


def components_of(model, kind, exclude=()):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return find_components(model, kind, exclude=exclude)
        except CoarlibError:
            return None


def refused_blocks(model, family, components):
    """Return the blocks that a task refuses by name, since nothing goes past them."""
    try:
        task_of(model, family, components)
    except ComponentError as error:
        return re.search("nothing goes past (.*?)(?: \\(| when)", str(error))[1].split(", ")
    return []


def filters_of(model):
    """Count the filters of a model by the shapes of its weights."""
    return sum(
        module.weight.shape[1] * module.groups if "Transpose" in name else len(module.weight)
        for module in model.modules()
        if (name := type(module).__name__) and hasattr(module, "kernel_size")
        and isinstance(getattr(module, "weight", None), torch.Tensor)
    )  # fmt: skip


def main_output(returned):
    if isinstance(returned, torch.Tensor):
        return returned
    logits = getattr(returned, "logits", None)
    return returned.last_hidden_state if logits is None else logits


def size(logits, targets):
    return logits.flatten(1).square().mean(1).sqrt()


def task_of(model, family, components):
    inputs = inputs_of(family)
    names = list(inputs)

    def predict(network, batch):
        return main_output(network(**dict(zip(names, batch, strict=True))))

    given = (inputs, torch.zeros(3, dtype=torch.long))
    task = ablate(model, given, components, outputs={"size": size}, predict=predict)
    task.prepare(torch.device("cpu"))
    return task


def largest_gap(model, family, components, rows=3):
    """Compare rows with hooks written by hand, relative to 1 + the largest output."""
    task, inputs = task_of(model, family, components), tuple(inputs_of(family).values())
    masks = np.random.default_rng(0).random((rows, len(components))) < 0.6
    found = task.rows(np.arange(rows), masks)["size"]
    network, gaps = task.plain_model(), []
    called = called_in(network, lambda: task.predict(network, inputs))
    for mask, row in zip(masks, found, strict=True):
        with torch.no_grad(), by_hand(network, components, mask, called):
            expected = size(task.predict(network, inputs), None)
        gaps.append(float((row - expected).abs().max() / (1 + expected.abs().max())))
    return max(gaps)


def called_in(network, run):
    """Which layers are called when the model runs: some use the weights of others themselves."""
    called, handles = set(), []
    for name, module in network.named_modules():
        if isinstance(module, LAYERS) or type(module).__name__ == "Conv1D":
            handles.append(module.register_forward_pre_hook(lambda *_, n=name: called.add(n)))
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    return called


def silent_at(kept, output):
    """Ablated filters, along the second axis of what a convolution makes."""
    return (~kept).reshape(1, -1, *[1] * (output.ndim - 2))


def step_by_step(layer, x, kept):
    """Run a recurrent layer by its formulas, hidden states times their part of the mask."""
    masks, weight = kept.reshape(-1, layer.hidden_size).float(), dict(layer.named_parameters())
    for level in range(layer.num_layers):
        ways = []
        for way in range(1 + layer.bidirectional):
            end = f"_l{level}" + "_reverse" * way
            mask = masks[level * (1 + layer.bidirectional) + way]
            w = [weight[f"{key}{end}"] for key in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")]
            project = weight.get(f"weight_hr{end}")
            h, c = x.new_zeros(len(x), w[2].shape[1]), x.new_zeros(len(x), layer.hidden_size)
            states = []
            for step in x.flip(1).unbind(1) if way else x.unbind(1):
                a, b = step @ w[0].T + w[1], h @ w[2].T + w[3]
                if isinstance(layer, nn.LSTM):
                    i, f, g, o = (a + b).chunk(4, 1)
                    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                    h = o.sigmoid() * c.tanh() * mask
                elif isinstance(layer, nn.GRU):
                    (ra, za, na), (rb, zb, nb) = a.chunk(3, 1), b.chunk(3, 1)
                    z = (za + zb).sigmoid()
                    h = ((1 - z) * (na + (ra + rb).sigmoid() * nb).tanh() + z * h) * mask
                else:
                    h = (a + b).tanh() * mask
                h = h if project is None else h @ project.T
                states.append(h)
            ways.append(torch.stack(states[::-1] if way else states, 1))
        x = torch.cat(ways, 2)
    return x, None


class by_hand:
    """Ablate by hooks on projections; where hooks do not fire, by hand in the weights."""

    def __init__(self, network, components, mask, called):
        self.network, self.called, self.undo = network, called, []
        first = 0
        for group in components:
            kept = torch.from_numpy(mask[first : first + group.units])
            first += group.units
            if not kept.all() and group.kind != "hidden_unit":
                self.ablate(group, kept)
        if components.groups[0].kind == "hidden_unit":
            layer, kept = network.recurrent, torch.from_numpy(mask)
            layer.forward = lambda x: step_by_step(layer, x, kept)
            self.undo.append(lambda: delattr(layer, "forward"))

    def ablate(self, group, kept):
        if group.kind == "conv_filter" and group.module in self.called:
            self.undo.append(self.network.get_submodule(group.module).register_forward_hook(
                lambda m, args, output: output.masked_fill(silent_at(kept, output), 0)
                + (0 if m.bias is None else (~kept * m.bias).reshape(silent_at(kept, output).shape))
            ).remove)  # fmt: skip
        elif hasattr(group, "slices"):
            for path in (piece.path for piece in group.slices):
                self.silence(path)
        elif group.parameter != "weight" or group.kind == "conv_filter":
            self.cut(group, kept)
        elif group.module not in self.called:
            silent = (~kept).repeat_interleave(group.width)
            self.cut_parameter(group.path, lambda weight: weight.masked_fill_(silent, 0))
        else:
            silent = ~kept.repeat_interleave(group.width)
            module = self.network.get_submodule(group.module)
            self.undo.append(module.register_forward_pre_hook(
                lambda m, args: (args[0].masked_fill(silent, 0), *args[1:])).remove)  # fmt: skip

    def silence(self, path):
        module = self.network.get_submodule(path.rpartition(".")[0])
        if not path.endswith(".weight") or path.rpartition(".")[0] not in self.called:
            self.cut_parameter(path, lambda x: x.zero_())
            return

        def hook(m, args, output):
            bias = torch.zeros(()) if m.bias is None else m.bias
            if hasattr(m, "kernel_size") and bias.ndim:
                bias = bias.reshape(-1, *[1] * (output.ndim - 2))
            return torch.zeros_like(output) + bias

        self.undo.append(module.register_forward_hook(hook).remove)

    def cut(self, group, kept):
        def change(parameter):
            for unit in (~kept).nonzero()[:, 0].tolist():
                if group.inner is None:
                    parameter.select(group.axis, unit).zero_()
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
