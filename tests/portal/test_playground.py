"""The playground: programs that are typed, run, watched, stopped and shared."""

import re

from playwright.sync_api import Locator, Page, expect

from tests.portal.browsing import Open, Visitor


def output(page: Page) -> Locator:
    return page.get_by_role("region", name="Output")


def test_a_program_is_typed_and_run_by_keyboard_alone(user: Visitor) -> None:
    """From the address bar on: skip link, into the editor, Control+Enter; Escape and Tab lead out of it again."""
    page, keyboard = user.page, user.page.keyboard
    user.go("/app/play")
    editor = page.get_by_role("textbox", name="Program")
    expect(editor).to_be_visible()
    keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    keyboard.press("Enter")
    for _ in range(10):
        keyboard.press("Tab")
        if editor.evaluate("element => element === document.activeElement"):
            break
    expect(editor).to_be_focused()
    keyboard.press("Control+a")
    keyboard.type("name = input()\nprint('hello', name)\n")
    keyboard.press("Escape")
    keyboard.press("Tab")
    expect(page.get_by_label("Input (stdin)")).to_be_focused()
    keyboard.type("Ada")
    keyboard.press("Control+Enter")
    expect(output(page)).to_have_text("hello Ada\n")
    result = page.get_by_role("region", name="Result")
    expect(result.get_by_role("status")).to_contain_text("succeeded")
    expect(result).to_contain_text(re.compile(r"Memory\s*[\d.]+ [KM]iB"))
    expect(result).to_contain_text(re.compile(r"Exit code\s*0"))


def test_output_appears_while_the_program_runs_and_stop_ends_it(user: Visitor) -> None:
    page = user.page
    user.go("/app/play")
    user.type_program(
        "import sys, time\nprint('first', flush=True)\nprint('worse', file=sys.stderr, flush=True)\ntime.sleep(60)\n"
    )
    page.get_by_label("Time limit in seconds").fill("90")
    page.get_by_role("button", name="Run").click()
    expect(output(page)).to_contain_text("first")
    expect(output(page).locator(".output-stderr")).to_contain_text("worse")
    expect(page.get_by_role("region", name="Result").get_by_role("status")).to_contain_text("running")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("region", name="Result").get_by_role("status")).to_contain_text("cancelled")
    expect(output(page)).to_contain_text("first")
    expect(page.get_by_role("button", name="Run")).to_be_enabled()


def test_a_limit_that_is_reached_is_told_and_one_too_high_is_refused_beside_its_input(user: Visitor) -> None:
    page = user.page
    user.go("/app/play")
    user.type_program("while True: pass\n")
    page.get_by_label("Time limit in seconds").fill("0.5")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("region", name="Result").get_by_role("status")).to_contain_text(
        re.compile("Stopped: .*500 ms")
    )
    page.get_by_label("Time limit in seconds").fill("soon")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_label("Time limit in seconds")).to_have_accessible_description(re.compile("number of seconds"))
    page.get_by_label("Time limit in seconds").fill("1000000")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("alert").or_(page.locator(".field-error"))).to_be_visible()


def test_each_language_keeps_its_program_and_has_an_example(user: Visitor) -> None:
    page = user.page
    user.go("/app/play")
    user.type_program("print('mine')\n")
    language = page.get_by_label("Language")
    language.select_option("bash")
    expect(page.get_by_role("textbox", name="Program")).not_to_contain_text("mine")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("region", name="Result").get_by_role("status")).to_contain_text("succeeded")
    language.select_option("python")
    expect(page.get_by_role("textbox", name="Program")).to_contain_text("print('mine')")
    page.reload()
    expect(page.get_by_role("textbox", name="Program")).to_contain_text("print('mine')")
    page.get_by_role("button", name="Example", exact=True).click()
    expect(page.get_by_role("textbox", name="Program")).not_to_contain_text("mine")


def test_a_link_carries_a_program_to_somebody_else_who_logs_in_first(user: Visitor, open_browser: Open) -> None:
    """The server keeps nothing of it: the program stands after the #."""
    page = user.page
    user.go("/app/play")
    user.type_program("import sys\nprint('π', sys.argv[1:], input())\n")
    page.get_by_label("Input (stdin)").fill("a line")
    page.get_by_label("Arguments, one a line").fill("one word\ntwo")
    page.get_by_role("button", name="Share").click()
    link = page.get_by_role("dialog").get_by_label("Link").input_value()
    assert link.startswith(f"{user.server.url}/app/play#code=")
    other = open_browser()
    other.page.goto(link)
    expect(other.page.get_by_role("heading", name="Log in")).to_be_visible()
    other.page.get_by_label("Email").fill(user.email)
    other.page.get_by_label("Password", exact=True).fill("correct horse battery")
    other.page.get_by_role("button", name="Log in").click()
    expect(other.page.get_by_text("This program came with a link")).to_be_visible()
    other.page.get_by_role("button", name="Run").click()
    expect(output(other.page)).to_have_text("π ['one word', 'two'] a line\n")


def test_a_link_that_was_cut_off_says_so(user: Visitor) -> None:
    user.page.goto(user.server.url + "/app/play#code=q1bKS8xNVbJSKqgsycjPU9JRSs5PSVWyUk")
    expect(user.page.get_by_role("alert")).to_contain_text("cut off or changed")


def test_a_former_run_is_opened_and_taken_into_the_editor_again(user: Visitor) -> None:
    page = user.page
    job = user.ask("POST", "/api/jobs", {"language": "python", "code": "print('earlier')\n", "args": ["x"]})
    user.go("/app/play")
    history = page.get_by_role("region", name="Your last runs")
    expect(history.get_by_text("succeeded")).to_be_visible()
    history.get_by_role("button", name="Edit").click()
    expect(page.get_by_role("textbox", name="Program")).to_contain_text("earlier")
    expect(page.get_by_label("Arguments, one a line")).to_have_value("x")
    history.get_by_role("link").click()
    expect(page).to_have_url(re.compile(job["id"]))
    expect(output(page)).to_have_text("earlier\n")
