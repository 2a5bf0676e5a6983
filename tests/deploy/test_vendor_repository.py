"""Where the roles look for NVIDIA's packages, on each distribution that they support.

The addresses and the keys' names are NVIDIA's: its installation guide for data centre drivers, and for Debian 13, whose
apt refuses the older key, NVIDIA/cuda-repo-management#34, #38 and #39.
"""

from typing import Any

import jinja2
import pytest
import yaml

from tests.deploy.playbooks import ANSIBLE

BASE = "https://developer.download.nvidia.com/compute/cuda/repos"
OLDER_KEY = f"{BASE}/debian12/x86_64/3bf863cc.pub"

#: Distribution, its version as Ansible's facts have it → directory of the repository, key, branch.
PLATFORMS = {
    ("Debian", "12.11"): ("debian12", OLDER_KEY, "580"),
    ("Debian", "13.2"): ("debian13", f"{BASE}/debian13/x86_64/8793F200.pub", "595"),
    ("Ubuntu", "22.04"): ("ubuntu2204", OLDER_KEY, "580"),
    ("Ubuntu", "24.04"): ("ubuntu2404", OLDER_KEY, "580"),
}


class Recursive(jinja2.runtime.Context):
    """Variables whose values are templates in turn, as Ansible's are."""

    def resolve_or_missing(self, key: str) -> Any:
        """The value of a variable, without templates in it."""
        value = super().resolve_or_missing(key)
        if isinstance(value, str) and "{{" in value:
            return self.environment.from_string(value).render(self.parent)
        return value


def resolved(role: str, name: str, platform: tuple[str, str]) -> str:
    """What a variable of the role comes to on a host of that platform, if the inventory says nothing of it."""
    distribution, version = platform
    major = version.partition(".")[0]
    variables: dict[str, Any] = {
        "ansible_facts": {
            "distribution": distribution,
            "distribution_version": version,
            "distribution_major_version": major,
            "architecture": "x86_64",
        }
    }
    for place in ("vars", "defaults"):
        variables |= yaml.safe_load((ANSIBLE / "roles" / role / place / "main.yml").read_text())
    environment = jinja2.Environment(autoescape=False)
    environment.context_class = Recursive
    return environment.from_string(f"{{{{ {name} }}}}").render(variables).strip()


@pytest.mark.parametrize("platform", PLATFORMS, ids=" ".join)
@pytest.mark.parametrize("role", ["nvidia_driver", "dcgm_exporter"])
def test_repository_and_key_of_the_distribution(role: str, platform: tuple[str, str]) -> None:
    """Each platform gets NVIDIA's repository and key for its distribution."""
    directory, key, _ = PLATFORMS[platform]
    assert resolved(role, f"{role}_repository_url", platform).rstrip("/") == f"{BASE}/{directory}/x86_64"
    assert resolved(role, f"{role}_repository_key_url", platform) == key


@pytest.mark.parametrize("platform", PLATFORMS, ids=" ".join)
def test_default_branch_is_one_that_the_repository_has(platform: tuple[str, str]) -> None:
    branch = resolved("nvidia_driver", "nvidia_driver_branch", platform)
    assert branch == PLATFORMS[platform][2]
    assert int(branch) >= int(resolved("nvidia_driver", "__nvidia_driver_branch_min", platform))
