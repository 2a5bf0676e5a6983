#!/bin/sh
# Stand-in for nvidia-smi, of one GPU: the driver that is loaded, and persistence mode as nvidia-persistenced has set it.
version=$(cat /sys/module/nvidia/version 2>/dev/null) || {
    echo "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver." >&2
    exit 9
}
case "$*" in
*--query-gpu=driver_version,persistence_mode*)
    echo "$version, $(cat /run/nvidia-persistenced/mode 2>/dev/null || echo Disabled)"
    ;;
*)
    echo "stand-in: $* is not asked for by the role nvidia_driver" >&2
    exit 2
    ;;
esac
