"""The smallest detector and data that train end to end, for the tests of several rooms."""

TINY = """
MODEL:
  BACKBONE:
    ResNet: {DEPTH: 18, NORM: BN, FREEZE_AT: 0, STEM_CHANNELS: 8, RES2_CHANNELS: 8}
  NECK:
    FPN: {OUT_CHANNELS: 8}
  HEAD:
    RetinaNetHead: {NUM_CONVS: 1}
  ANCHORS: {SIZES: [16, 32, 64, 128, 256]}
DATASETS:
  TRAIN: ["shapes:train,images=12,seed=1,size=96"]
  TEST: ["shapes:val,images=4,seed=1,size=96"]
INPUT:
  TRAIN_TRANSFORMS:
    ResizeShortestEdge: {SIZES: [80, 96], MAX_SIZE: 96}
  TEST_TRANSFORMS:
    ResizeShortestEdge: {SIZES: [96], MAX_SIZE: 96}
SOLVER:
  REFERENCE_BATCH: null
  IMS_PER_BATCH: 4
  MAX_ITER: 6
  CHECKPOINT_PERIOD: 2
  LR_SCHEDULE:
    NAME: WarmupCosine
    WarmupCosine: {WARMUP_ITERS: 2}
TEST: {EVAL_PERIOD: 3, IMS_PER_BATCH: 2}
DATALOADER: {NUM_WORKERS: 0}
VIS: {NUM_IMAGES: 2}
"""
