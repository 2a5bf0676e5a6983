"""The host's metrics from node_exporter, and Prometheus' own."""

from .promql import rate, ratio, select, total

#: Memory and images of file systems: always full, or never.
DISKS = 'fstype!~"tmpfs|ramfs|devtmpfs|overlay|squashfs|iso9660|fuse.*|nsfs"'
CARDS = 'device!~"lo|veth.*|docker.*|br-.*"'
#: Those that this project installs, as far as the systemd collector is on for them.
UNITS = 'name=~"(sluicegate|vllm@.+|prometheus.*|nvidia-.+|grafana-server|open-webui)[.](service|socket)"'

IDLE = 'mode="idle"'

TARGETS = select("up")
CPU_BUSY = f"1 - avg by (instance) ({rate('node_cpu_seconds_total', IDLE)})"
LOAD = select("node_load1")
CPUS = f"count by (instance) ({select('node_cpu_seconds_total', IDLE)})"
MEMORY_USED = f"{select('node_memory_MemTotal_bytes')} - {select('node_memory_MemAvailable_bytes')}"
MEMORY_TOTAL = select("node_memory_MemTotal_bytes")
DISK_USED = f"1 - {ratio(select('node_filesystem_avail_bytes', DISKS), select('node_filesystem_size_bytes', DISKS))}"
#: File systems without a fixed number of inodes report 0 of 0.
INODES_USED = f"1 - {ratio(select('node_filesystem_files_free', DISKS), select('node_filesystem_files', DISKS))}"
DISK_BUSY = rate("node_disk_io_time_seconds_total")
RECEIVED = total(rate("node_network_receive_bytes_total", CARDS), "instance", "device")
SENT = total(rate("node_network_transmit_bytes_total", CARDS), "instance", "device")
PRESSURE_CPU = rate("node_pressure_cpu_waiting_seconds_total")
PRESSURE_MEMORY = rate("node_pressure_memory_waiting_seconds_total")
PRESSURE_IO = rate("node_pressure_io_waiting_seconds_total")
UNITS_ACTIVE = select("node_systemd_unit_state", 'state="active"', UNITS)

# Prometheus

SERIES = select("prometheus_tsdb_head_series")
BLOCKS = select("prometheus_tsdb_storage_blocks_bytes")
SAMPLES = total(select("scrape_samples_scraped"), "job")
SCRAPE_SECONDS = f"max by (job) ({select('scrape_duration_seconds')})"
RULE_FAILURES = total(rate("prometheus_rule_evaluation_failures_total"), "instance")
CONFIG_LOADED = select("prometheus_config_last_reload_successful")
