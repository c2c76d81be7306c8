"""The list of jobs and the page of one."""

import re

from playwright.sync_api import expect

from tests.portal.browsing import Visitor


def submit(visitor: Visitor, code: str, **members: object) -> str:
    found = visitor.ask("POST", "/api/jobs", {"language": "python", "code": code, **members})
    identity = found["id"]
    assert isinstance(identity, str)
    return identity


def test_jobs_are_listed_and_filtered(user: Visitor) -> None:
    """The filters stand in the address, so that going back keeps them."""
    page = user.page
    good, bad = submit(user, "print(1)"), submit(user, "raise SystemExit(3)")
    user.go("/app/jobs")
    row = page.get_by_role("row").filter(has_text=bad[:8])
    expect(row).to_contain_text("Ended with status 3")
    page.get_by_label("State").select_option("failed")
    expect(page.get_by_role("row").filter(has_text=good[:8])).to_have_count(0)
    expect(row).to_be_visible()
    row.get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Job {bad[:8]}")
    page.go_back()
    expect(page.get_by_label("State")).to_have_value("failed")
    page.get_by_label("State").select_option("cancelled")
    expect(page.get_by_role("heading", name="No job matches these filters")).to_be_visible()
    page.get_by_role("button", name="Show all jobs").click()
    expect(page.get_by_role("row").filter(has_text=good[:8])).to_be_visible()


def test_more_jobs_than_a_page_holds_are_fetched_on_demand(user: Visitor) -> None:
    for number in range(52):
        submit(user, f"print({number})")
    user.go("/app/jobs")
    rows = user.page.get_by_role("row").filter(has_text="python")
    expect(rows).to_have_count(50)
    user.page.get_by_role("button", name="Show more").click()
    expect(rows).to_have_count(52)


def test_a_running_job_is_watched_and_cancelled_and_run_again(user: Visitor) -> None:
    page = user.page
    job = submit(user, "print('begun', flush=True)\nimport time\ntime.sleep(60)", limits={"wall_s": 90})
    user.go(f"/app/jobs/{job}")
    expect(page.get_by_role("region", name="Output")).to_contain_text("begun")
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("region", name="Result").get_by_role("status")).to_contain_text("cancelled")
    page.get_by_role("button", name="Run again").click()
    expect(page).not_to_have_url(re.compile(job))
    expect(page.get_by_role("link", name=job[:8])).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("region", name="Result").get_by_role("status")).to_contain_text("cancelled")


def test_what_a_program_prints_is_text_and_never_markup(user: Visitor) -> None:
    job = submit(user, "print('<img src=x onerror=\"document.title=1\"><script>document.title=1</script>')")
    user.go(f"/app/jobs/{job}")
    expect(user.page.get_by_role("region", name="Output")).to_contain_text("<script>document.title=1</script>")
    expect(user.page).to_have_title(re.compile("^Job "))


def test_a_job_is_deleted_after_a_question(user: Visitor) -> None:
    page = user.page
    job = submit(user, "print(1)")
    user.go(f"/app/jobs/{job}")
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", name="No jobs yet")).to_be_visible()
    user.go(f"/app/jobs/{job}")
    expect(page.get_by_role("heading", name="There is no such job")).to_be_visible()
