"""Files of weights as other libraries write them, made from a detector of ours by rules written for the tests.

The rules go from our names to theirs, one layer at a time, and orders of anchors and classes by explicit loops: the
inverse of what the library does, written apart from it.
"""

import pickle

import numpy as np
import torch

from detkit.config import get_cfg
from detkit.modeling import build_detector

NARROW = [
    *("MODEL.BACKBONE.ResNet.STEM_CHANNELS", 8, "MODEL.BACKBONE.ResNet.RES2_CHANNELS", 16),
    *("MODEL.BACKBONE.ResNet.WIDTH_PER_GROUP", 4, "MODEL.NECK.FPN.OUT_CHANNELS", 32),
]
EPS = 1e-5


def config(*overrides):
    cfg = get_cfg()
    cfg.merge_from_list([*NARROW, *overrides])
    return cfg


def detector(*overrides, classes=80, seed=0):
    """A narrow RetinaNet R50 with random values everywhere, norms and biases included."""
    torch.manual_seed(seed)
    return randomise(build_detector(config(*overrides), classes)).eval()


@torch.no_grad()
def randomise(model):
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or name.endswith("moving_normalizer"):
            continue
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("norm.weight"):
            tensor.uniform_(0.5, 1.0)
        elif tensor.ndim == 1:
            tensor.normal_(std=0.1)
        else:
            tensor.normal_(std=0.5 * (tensor[0].numel()) ** -0.5)
    return model


@torch.no_grad()
def make_it_detect(model, image, score_std=1.5, delta_std=0.3, mean=-3.0):
    """Scale the last layers by what they say of a picture: scores spread around a low mean, boxes move a little."""
    model.head.bbox_pred.bias.zero_()
    model.head.cls_score.bias.zero_()
    raw = model.raw_outputs(image[None], torch.tensor([image.shape[1:]]))
    model.head.cls_score.weight *= score_std / torch.cat(raw.logits, 1).std()
    model.head.bbox_pred.weight *= delta_std / torch.cat(raw.deltas, 1).std()
    raw = model.raw_outputs(image[None], torch.tensor([image.shape[1:]]))
    model.head.cls_score.bias -= torch.cat(raw.logits, 1).mean() - mean


# Detectron (Caffe2)

CAFFE2_LAYERS = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
LAST_BLOCK = {"res3": 3, "res4": 5, "res5": 2}  # of ResNet-50


def as_affine(model):
    """Make a detector's norms what Detectron has: scale and shift only."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_mean"):
            tensor.zero_()
        elif name.endswith("running_var"):
            tensor.fill_(1 - EPS)
    return model


def caffe2_backbone(model):
    """ImageNet's blobs, `R-50.pkl`: the backbone, the classifier, and the first bias, which nobody uses."""
    state = model.backbone.bottom_up.state_dict()
    blobs = {"fc1000_w": torch.randn(10, 4), "fc1000_b": torch.randn(10), "conv1_b": torch.randn(8)}
    for name, tensor in state.items():
        layer, _, part = name.rpartition(".")
        if "running" in part:
            continue
        is_norm = layer.endswith(".norm")
        layer = layer.removesuffix(".norm")
        suffix = {"weight": "_bn_s", "bias": "_bn_b"}[part] if is_norm else "_w"
        if layer == "stem.conv1":
            blobs[("res_conv1" if is_norm else "conv1") + suffix] = tensor
        else:
            stage, block, conv = layer.split(".")
            blobs[f"{stage}_{block}_{CAFFE2_LAYERS[conv]}{suffix}"] = tensor
    return {name: tensor.numpy().copy() for name, tensor in blobs.items()}


def detectron_order(tensor, values):
    """Anchors of each octave from our ratios (1/2, 1, 2) to Detectron's (1, 2, 1/2); `values` per anchor."""
    rows = []
    for octave in range(3):
        for ratio in (1, 2, 0):
            first = (3 * octave + ratio) * values
            rows.append(tensor[first : first + values])
    return torch.cat(rows)


def caffe2_retinanet(model, classes=80):
    """Blobs of a RetinaNet that Detectron trained, with momenta, which the importer leaves out."""
    blobs = caffe2_backbone(model)
    del blobs["fc1000_w"], blobs["fc1000_b"], blobs["conv1_b"]
    ends = {"weight": "_w", "bias": "_b"}
    for name, tensor in model.state_dict().items():
        layer, _, part = name.rpartition(".")
        end = ends.get(part)
        if name.startswith("backbone.fpn_lateral"):
            level = int(layer[-1])
            middle = "" if level == 5 else "_lateral"
            blobs[f"fpn_inner_res{level}_{LAST_BLOCK[f'res{level}']}_sum{middle}{end}"] = tensor
        elif name.startswith("backbone.fpn_output"):
            level = int(layer[-1])
            blobs[f"fpn_res{level}_{LAST_BLOCK[f'res{level}']}_sum{end}"] = tensor
        elif name.startswith("backbone.top_block"):
            blobs[f"fpn_{layer[-1]}{end}"] = tensor
        elif "_subnet." in name:
            kind, index = layer.removeprefix("head.").split("_subnet.")
            blobs[f"retnet_{kind}_conv_n{int(index) // 2}_fpn3{end}"] = tensor
        elif name.startswith("head.cls_score"):
            blobs[f"retnet_cls_pred_fpn3{end}"] = detectron_order(tensor, classes)
        elif name.startswith("head.bbox_pred"):
            blobs[f"retnet_bbox_pred_fpn3{end}"] = detectron_order(tensor, 4)
    blobs = {name: np.asarray(value).copy() for name, value in blobs.items()}
    momenta = {f"{name}_momentum": np.zeros_like(value) for name, value in blobs.items() if name.startswith("retnet")}
    return {**blobs, **momenta}


# torchvision

TV_COCO_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]


def torchvision_resnet(model, prefix="", counters=True):
    """The state of torchvision's resnet50, without its last layer."""
    state = {}
    for name, tensor in model.backbone.bottom_up.state_dict().items():
        layer, _, part = name.rpartition(".")
        is_norm = layer.endswith(".norm")
        layer = layer.removesuffix(".norm")
        if layer == "stem.conv1":
            theirs = "bn1" if is_norm else "conv1"
        else:
            stage, block, conv = layer.split(".")
            number = conv.removeprefix("conv")
            inner = ("downsample.1" if is_norm else "downsample.0") if conv == "shortcut" else None
            theirs = f"layer{int(stage[-1]) - 1}.{block}.{inner or ('bn' if is_norm else 'conv') + number}"
        state[f"{prefix}{theirs}.{part}"] = tensor.clone()
        if counters and part == "running_var":
            state[f"{prefix}{theirs}.num_batches_tracked"] = torch.tensor(7)
    return state


def torchvision_order(tensor, values):
    """Anchors from ours (scale by scale) to torchvision's (ratio by ratio); `values` per anchor."""
    rows = []
    for ratio in range(3):
        for scale in range(3):
            first = (3 * scale + ratio) * values
            rows.append(tensor[first : first + values])
    return torch.cat(rows)


def torchvision_classes(tensor):
    """80 classes to the 91 rows of COCO's ids, of every anchor; those of no class never score, as trained ones."""
    per_anchor = tensor.reshape(9, 80, *tensor.shape[1:])
    rows = torch.full((9, 91, *tensor.shape[1:]), -20.0 if tensor.ndim == 1 else 0.0)
    for place, number in enumerate(TV_COCO_IDS):
        rows[:, number] = per_anchor[:, place]
    return rows.reshape(9 * 91, *tensor.shape[1:])


def torchvision_retinanet(model, *, version, old_names=False):
    """The state of torchvision's retinanet_resnet50_fpn (1), or of its second version (2), with 91 classes."""
    state = torchvision_resnet(model, "backbone.body.", counters=version == 2)
    if version == 1:  # its norms add no epsilon
        state = {name: t + EPS if name.endswith("running_var") else t for name, t in state.items()}
    inner = "" if old_names else ".0"
    for name, tensor in model.state_dict().items():
        layer, _, part = name.rpartition(".")
        if name.startswith(("backbone.fpn_lateral", "backbone.fpn_output")):
            kind = "inner" if "lateral" in layer else "layer"
            state[f"backbone.fpn.{kind}_blocks.{int(layer[-1]) - 3}{inner}.{part}"] = tensor
        elif name.startswith("backbone.top_block"):
            state[f"backbone.fpn.extra_blocks.{layer[-2:]}.{part}"] = tensor
        elif "_subnet." in name:
            kind, index = layer.removeprefix("head.").split("_subnet.")
            head = {"cls": "classification", "bbox": "regression"}[kind]
            if version == 2:
                if int(index) % 3 == 0 and part == "bias":
                    continue  # before a norm torchvision has none
                place = f"{int(index) // 3}.{int(index) % 3}"
            else:
                place = index if old_names else f"{int(index) // 2}.0"
            state[f"head.{head}_head.conv.{place}.{part}"] = tensor
        elif name.startswith("head.cls_score"):
            state[f"head.classification_head.cls_logits.{part}"] = torchvision_order(torchvision_classes(tensor), 91)
        elif name.startswith("head.bbox_pred"):
            state[f"head.regression_head.bbox_reg.{part}"] = torchvision_order(tensor, 4)
    return {name: tensor.clone() for name, tensor in state.items()}


def write_pickle(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path
