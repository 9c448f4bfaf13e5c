from magvit2_pytorch.codes.code_file import CODE_SUFFIX, CodeFile, read_codes, write_codes
from magvit2_pytorch.codes.code_header import CodedVideo, CodeHeader
from magvit2_pytorch.codes.codes_dataset import CodesDataset, CodesItem
from magvit2_pytorch.data.clips import ClipSpec
from magvit2_pytorch.data.datasets import ImageDataset, VideoDataset
from magvit2_pytorch.data.loader import InfiniteBatches, ResumableSampler
from magvit2_pytorch.data.split import split_files
from magvit2_pytorch.data.workers import DeadWorker, naming_dead_workers
from magvit2_pytorch.media.frames import check_range, to_float, to_uint8
from magvit2_pytorch.media.images import read_image, write_grid, write_image
from magvit2_pytorch.media.sources import find_media
from magvit2_pytorch.media.unusable import UnusableMedia
from magvit2_pytorch.media.video_reader import VideoFile
from magvit2_pytorch.media.video_writer import VideoWriter, write_video

__all__ = [
    "CODE_SUFFIX",
    "ClipSpec",
    "CodeFile",
    "CodeHeader",
    "CodedVideo",
    "CodesDataset",
    "CodesItem",
    "DeadWorker",
    "ImageDataset",
    "InfiniteBatches",
    "ResumableSampler",
    "UnusableMedia",
    "VideoDataset",
    "VideoFile",
    "VideoWriter",
    "check_range",
    "find_media",
    "naming_dead_workers",
    "read_codes",
    "read_image",
    "split_files",
    "to_float",
    "to_uint8",
    "write_codes",
    "write_grid",
    "write_image",
    "write_video",
]
