"""Files, logs, meters, registries and checkpoints."""

from dassl.infrastructure.images import as_photo, decoded_copies, on_white, read_image, read_photo, reduce_side
from dassl.infrastructure.streams import progress

from .logger import Logger, setup_logger
from .meters import AverageMeter, MetricMeter
from .registry import Registry
from .tools import (
    atomic_write,
    check_availability,
    check_isfile,
    collect_env_info,
    download_url,
    end_with_parent,
    free_memory,
    get_most_similar_str_to_a_from_b,
    listdir_nohidden,
    locked,
    mkdir_if_missing,
    read_json,
    set_random_seed,
    tolist_if_not,
    write_json,
)
from .torchtools import (
    count_num_param,
    init_network_weights,
    load_checkpoint,
    load_pretrained_weights,
    name_newest,
    open_all_layers,
    open_specified_layers,
    resume_from_checkpoint,
    save_checkpoint,
)
