"""Which names a service cannot have: those of all that it installs."""

import tomllib

from copier._jinja_ext import CopierTemplateLoader, SandboxedEnvironment

from tests.combinations import Combination
from tests.service import Service
from tests.snapshot import ROOT


def test_no_service_can_be_called_like_a_package_that_it_installs(
    combination: Combination, service: Service
) -> None:
    service.install()
    lock = tomllib.loads((service.folder / "uv.lock").read_text())
    chosen = {package["name"] for package in lock["package"] if "virtual" not in package["source"]}

    environment = SandboxedEnvironment(
        loader=CopierTemplateLoader(ROOT),
        extensions=["jinja2_ansible_filters.AnsibleCoreFiltersExtension"],
    )
    text = "{% from 'extensions/packages.jinja' import installed %}{{ installed(sources) }}"
    on = [name for name, answer in combination.answers.items() if answer is True]
    known = environment.from_string(text).render(sources=["always", combination.database, *on])

    missing = chosen - set(known.split())
    assert not missing, "add it to extensions/packages.jinja"
