"""Files: cases 25 to 33 of the contract, and what it says around them."""

import pytest

from tests.dialects.executor.serving import Executor

DONE = {"success": True}


def failed(answer: dict[str, object], *words: str) -> bool:
    """Whether a change was refused for a reason that clients recognise."""
    assert answer.keys() == {"success", "error"}
    assert answer["success"] is False
    return told(answer, *words)


def told(answer: dict[str, object], *words: str) -> bool:
    error = answer["error"]
    assert isinstance(error, str)
    assert any(word in error for word in words), error
    return True


def test_25_parents_are_not_made(executor: Executor, folder: str) -> None:
    answer = executor.reply("/write_file", {"path": f"{folder}/t/x", "content": "text"})
    assert answer == {"success": False, "error": f"open {folder}/t/x: no such file or directory"}


def test_26_a_directory_is_made_with_its_parents_and_may_be_there(executor: Executor, folder: str) -> None:
    for _ in range(2):
        assert executor.reply("/make_dir", {"path": f"{folder}/t/a/b"}) == DONE
    assert executor.stdout(f"stat -c %a {folder}/t {folder}/t/a/b") == "755\n755\n"
    executor.run(f"touch {folder}/f; ln -s t {folder}/link")
    assert executor.reply("/make_dir", {"path": f"{folder}/link"}) == DONE
    assert failed(executor.reply("/make_dir", {"path": f"{folder}/f"}), "not a directory", "exists")
    assert failed(executor.reply("/make_dir", {"path": f"{folder}/f/x"}), "not a directory")


@pytest.mark.parametrize("text", ['\u00e4 \u4e2d \U0001f600 \u2028\x85\n\0\t"\\', "plain", "", "\r\n\r"])
def test_27_what_is_written_is_read(executor: Executor, folder: str, text: str) -> None:
    path = f"{folder}/x"
    assert executor.reply("/write_file", {"path": path, "content": text}) == DONE
    assert executor.reply("/read_file", {"path": path}) == {"content": text}
    assert executor.stdout(f"stat -c '%a %s' {path}") == f"644 {len(text.encode())}\n"


def test_27_a_second_write_truncates_and_keeps_the_rest_of_the_file(executor: Executor, folder: str) -> None:
    """The file stays the same: its mode, and whoever has it open or linked."""
    path = f"{folder}/x"
    executor.reply("/write_file", {"path": path, "content": "a longer text"})
    executor.run(f"chmod 700 {path}; ln {path} {path}2; ln -s x {path}3")
    assert executor.reply("/write_file", {"path": f"{path}3", "content": "short"}) == DONE
    assert executor.stdout(f"cat {path} {path}2; stat -c %a {path}; readlink {path}3") == "shortshort700\nx\n"
    assert executor.reply("/write_file", {"path": path}) == DONE
    assert executor.reply("/read_file", {"path": path}) == {"content": ""}


def test_27_a_large_file_makes_the_round_trip(executor: Executor, folder: str) -> None:
    text = "0123456789abcde\n" * (20_000_000 // 16)
    assert executor.reply("/write_file", {"path": f"{folder}/x", "content": text}) == DONE
    assert executor.reply("/read_file", {"path": f"{folder}/x"})["content"] == text


def test_27_relative_paths_are_below_the_server_s_own_directory(executor: Executor, folder: str) -> None:
    name = folder.rpartition("/")[2]
    assert executor.reply("/write_file", {"path": f"{name}.txt", "content": "here"}) == DONE
    assert executor.stdout(f"cat {name}.txt; rm {name}.txt") == "here"


def test_28_reading_what_is_not_there_or_no_file(executor: Executor, folder: str) -> None:
    assert executor.reply("/read_file", {"path": f"{folder}/no"}) == {
        "error": f"open {folder}/no: no such file or directory"
    }
    assert told(executor.reply("/read_file", {"path": folder}), "is a directory")
    assert told(executor.reply("/read_file", {"path": ""}), "no such file or directory")
    assert told(executor.reply("/read_file", {}), "no such file or directory")
    assert told(executor.reply("/read_file", {"path": "a\0b"}), "invalid argument")


def test_28_bytes_that_are_no_text_are_replaced_one_by_one(executor: Executor, folder: str) -> None:
    executor.run(f"printf 'a\\377\\342\\202b' > {folder}/x")
    assert executor.reply("/read_file", {"path": f"{folder}/x"}) == {"content": "a\ufffd\ufffd\ufffdb"}


def test_28_what_is_no_plain_file_blocks_nothing(executor: Executor, folder: str) -> None:
    executor.run(f"mkfifo {folder}/pipe")
    assert told(executor.reply("/read_file", {"path": f"{folder}/pipe"}), "")
    assert failed(executor.reply("/write_file", {"path": f"{folder}/pipe", "content": "x"}), "")


def test_28_files_of_the_kernel_are_read(executor: Executor) -> None:
    """They have no size before they are read."""
    assert executor.reply("/read_file", {"path": "/proc/loadavg"})["content"].count(" ") == 4


def test_29_nothing_is_an_answer_too(executor: Executor, folder: str) -> None:
    executor.run(f": > {folder}/empty; mkdir {folder}/none")
    assert executor.reply("/read_file", {"path": f"{folder}/empty"}) == {"content": ""}
    assert executor.reply("/list_dir", {"path": f"{folder}/none"}) == {"entries": []}


def test_30_a_listing_is_sorted_and_complete(executor: Executor, folder: str) -> None:
    executor.run(f"cd {folder}; touch z a .h B '\u00e4' 'x y' \"$(printf 'n\\377')\"; mkdir e; ln -s nowhere l")
    entries = executor.reply("/list_dir", {"path": folder})["entries"]
    assert entries == [".h", "B", "a", "e", "l", "n\ufffd", "x y", "z", "\u00e4"]


def test_30_listing_what_is_not_there_or_no_directory(executor: Executor, folder: str) -> None:
    executor.run(f"touch {folder}/f")
    assert executor.reply("/list_dir", {"path": f"{folder}/no"}) == {
        "error": f"open {folder}/no: no such file or directory"
    }
    assert told(executor.reply("/list_dir", {"path": f"{folder}/f"}), "not a directory")


def test_31_a_file_is_deleted_once(executor: Executor, folder: str) -> None:
    executor.run(f"touch {folder}/f; ln -s f {folder}/link; mkdir -p {folder}/empty {folder}/full/x")
    assert executor.reply("/delete_file", {"path": f"{folder}/link"}) == DONE
    assert executor.reply("/read_file", {"path": f"{folder}/f"}) == {"content": ""}
    assert executor.reply("/delete_file", {"path": f"{folder}/f"}) == DONE
    assert executor.reply("/delete_file", {"path": f"{folder}/f"}) == {
        "success": False,
        "error": f"remove {folder}/f: no such file or directory",
    }
    assert executor.reply("/delete_file", {"path": f"{folder}/empty"}) == DONE
    assert executor.reply("/delete_file", {"path": f"{folder}/full"}) == {
        "success": False,
        "error": f"remove {folder}/full: directory not empty",
    }


def test_32_a_tree_is_deleted_and_need_not_be_there(executor: Executor, folder: str) -> None:
    executor.run(f"mkdir -p {folder}/t/a/b; touch {folder}/t/f {folder}/g; ln -s {folder}/g {folder}/t/link")
    for name in ("t", "t", "g", "no/such"):
        assert executor.reply("/delete_dir", {"path": f"{folder}/{name}"}) == DONE
    assert executor.reply("/list_dir", {"path": folder}) == {"entries": []}
    assert executor.reply("/delete_dir", {"path": ""}) == DONE
    executor.run(f"mkdir {folder}/t")
    assert failed(executor.reply("/delete_dir", {"path": f"{folder}/t/."}), "invalid argument")


def test_32_a_link_is_deleted_and_not_its_target(executor: Executor, folder: str) -> None:
    executor.run(f"mkdir {folder}/t; touch {folder}/t/f; ln -s t {folder}/link")
    assert executor.reply("/delete_dir", {"path": f"{folder}/link"}) == DONE
    assert executor.reply("/list_dir", {"path": f"{folder}/t"}) == {"entries": ["f"]}


def test_33_there_is_no_encoding(executor: Executor, folder: str) -> None:
    body = {"path": f"{folder}/x", "content": "AAEC", "encoding": "base64"}
    assert executor.reply("/write_file", body) == DONE
    assert executor.stdout(f"cat {folder}/x") == "AAEC"
    assert executor.reply("/read_file", {"path": f"{folder}/x", "encoding": "base64"}) == {"content": "AAEC"}


def test_33_binary_content_goes_both_ways_where_it_is_asked_for(executor: Executor, folder: str) -> None:
    body = {"path": f"{folder}/x", "content": "AAEC", "is_base64": True}
    assert executor.reply("/write_file", body) == DONE
    assert executor.stdout(f"od -An -tx1 {folder}/x").split() == ["00", "01", "02"]
    answer = executor.reply("/read_file", {"path": f"{folder}/x", "is_base64": True})
    assert answer == {"content": "AAEC", "is_base64": True}


def test_a_file_is_described(executor: Executor, folder: str) -> None:
    executor.run(f"printf 12345 > {folder}/x; chmod 640 {folder}/x")
    found = executor.reply("/stat_file", {"path": f"{folder}/x"})
    assert found.keys() == {"name", "is_dir", "size", "mod_time", "mode"}
    assert (found["name"], found["is_dir"], found["size"]) == ("x", False, 5)
    assert executor.reply("/stat_file", {"path": folder})["is_dir"] is True
    assert told(executor.reply("/stat_file", {"path": f"{folder}/no"}), "no such file")


@pytest.mark.parametrize("path", ["/write_file", "/read_file", "/delete_file", "/make_dir", "/delete_dir", "/list_dir"])
def test_a_path_that_is_none_is_an_error_with_status_200(executor: Executor, path: str) -> None:
    long = "/tmp/" + "x" * 300
    for name in (long, "/etc/passwd/x", "/tmp/" + "x/" * 3000):
        response = executor.post(path, {"path": name, "content": ""})
        assert response.status_code == 200
        assert "error" in response.json() or path == "/delete_dir"


@pytest.mark.parametrize("path", ["/write_file", "/read_file", "/list_dir"])
def test_a_path_of_another_type_is_an_invalid_request(executor: Executor, path: str) -> None:
    for body in ({"path": 5}, {"path": ["x"]}, []):
        response = executor.post(path, body)
        assert (response.status_code, response.text) == (400, "Invalid request\n")
