"""What the fault tests share: one campaign that nobody broke off, and the counts at the end."""

import pytest
from tests.faults import campaign
from tests.faults.campaign import REPRODUCE, Unbroken


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    folder = tmp_path_factory.mktemp("unbroken")
    template = campaign.template(folder / "template")
    whole = campaign.begin(folder / "project", template=template)
    assert whole.run(*REPRODUCE) == 0, whole.output()
    return Unbroken(template, campaign.kept(whole))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]:
        for name, line in report.user_properties:
            if name == "faults":
                terminalreporter.write_line(str(line))
