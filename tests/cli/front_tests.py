"""The command line itself: help, usage errors, standard streams."""
import json
import os
import re
import shutil
import subprocess

from support import VERBS, Skip, expect, qbench
import support
import tiny_models


def test_no_argument_shows_first_steps(_):
    done = expect(qbench(), 2)
    assert len(re.findall(rb"^  qbench ", done.out, re.M)) == 5, done


def test_colour_is_for_terminals_that_want_it(own):
    model = tiny_models.write_hf_folder(own / "hf")
    for env, wanted in (({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": ""}, True),
                        ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        ours, theirs = os.openpty()
        plain = {key: value for key, value in support.BASE_ENV.items() if key != "NO_COLOR"}
        code = subprocess.call([support.QBENCH, "run", "--quiet", "--no-speed", "--max-tokens", "200",
                                str(model)], stdout=theirs, stdin=subprocess.DEVNULL,
                               env={**plain, **env})
        os.close(theirs)
        assert code == 0 and (b"\x1b[" in os.read(ours, 1 << 16)) == wanted, env
        os.close(ours)


DOCTOR = {"processor", "cpu-kernels", "threads", "memory", "gpu", "gpu-kernels", "gpu-libraries",
          "processes", "live-page", "tokenizer", "data", "timing"}


def test_doctor_on_screen_and_as_json(_):
    said = json.loads(expect(qbench("doctor", "--json", "-")).out)
    assert said["schema"] == "qbench.doctor/1" and said["recommended"], said
    checks = {check["name"]: check for check in said["checks"]}
    assert set(checks) == DOCTOR and len(said["checks"]) == len(DOCTOR), said
    assert all(check["state"] in ("ok", "limited", "no") and check["found"]
               for check in checks.values()), said
    screen = expect(qbench("doctor")).out.decode()
    for name, check in checks.items():
        assert re.search(rf"^{name} +(ok|limited|no) +\S", screen, re.M), (name, screen)
    assert re.search(r"^recommended: \S", screen, re.M), screen
    assert max(map(len, screen.splitlines())) <= 80, screen


def test_doctor_says_what_is_off_and_why(_):
    def look(**env):
        said = json.loads(expect(qbench("doctor", "--json", "-", env=env)).out)
        return {check["name"]: check for check in said["checks"]}, said["recommended"]

    plain, _ = look()
    assert plain["gpu"]["state"] == "no" and re.search("CUDA|GPU|driver", plain["gpu"]["found"])
    assert plain["gpu-kernels"]["state"] == "no", plain["gpu-kernels"]
    rows = expect(qbench("kernels")).out.decode()
    n_cpu = len(re.findall(r"^  \S+ +cpu ", rows, re.M))
    assert f" of {n_cpu} rows usable" in plain["cpu-kernels"]["found"], plain["cpu-kernels"]
    less, advice = look(QB_DISABLE="avx2")
    assert less["cpu-kernels"]["state"] == "limited", less["cpu-kernels"]
    assert "QB_DISABLE" in less["cpu-kernels"]["found"] + less["processor"]["found"], less
    if "avx2" in plain["processor"]["found"]:
        assert less["processor"]["state"] == "limited" and advice == "unset QB_DISABLE", less


def test_overview_names_every_verb(_):
    done = expect(qbench("--help"))
    assert done.out == expect(qbench("help")).out
    commands = done.out.decode().split("\ncommands:\n")[1].split("\n\n")[0]
    assert re.findall(r"^  (\w+) +\w", commands, re.M) == VERBS  # what all tests loop over


def test_exit_codes_are_the_same_everywhere(_):
    overview = expect(qbench("help")).out.decode().split("exit codes:\n")[1].split("\n\n")[0]
    codes = dict(re.findall(r"^  (\d+) +(.*)$", re.sub(r"\n {13}", " ", overview), re.M))
    assert list(codes) == ["0", "1", "2", "3", "4", "5", "130"], codes
    page = (support.ROOT / "docs" / "README.md").read_text()
    assert dict(re.findall(r"^\| (\d+) \| (.*) \|$", page, re.M)) == codes
    man = expect(qbench("help", "--man")).out.decode().replace("\\-", "-").split("EXIT STATUS")[1]
    assert all(f".B {code}\n{meaning}\n" in man for code, meaning in codes.items()), man


def test_help_of_each_verb_has_two_examples(_):
    for verb in VERBS:
        done = expect(qbench("help", verb))
        assert expect(qbench(verb, "--help")).out == done.out
        examples = done.out.decode().split("\nexamples:\n")[1].splitlines()
        assert len(examples) == 2 and all("qbench" in line for line in examples), (verb, examples)
        assert max(map(len, done.out.decode().splitlines())) <= 80, verb


def test_examples_use_options_that_exist(_):
    """Each example's options are in the verb's own help."""
    for verb in VERBS:
        text = expect(qbench("help", verb)).out.decode()
        options, examples = text.split("\nexamples:\n")
        for word in re.findall(r"(?<!\S)--[a-z-]+", examples):
            assert word in options, f"{verb}: {word}"


def test_version(_):
    done = expect(qbench("--version"))
    assert re.match(rb"qbench \d+\.\d+\.\d+ \(commit \S+\)\n", done.out), done
    assert done.out == expect(qbench("version")).out
    assert b"used: none" in expect(qbench("version", env={"QB_DISABLE": "avx2"})).out


def test_man_page_formats(_):
    done = expect(qbench("help", "--man"))
    assert done.out.startswith(b".TH QBENCH 1")
    for verb in VERBS:
        assert f'.SS "qbench {verb}"'.encode() in done.out
    if not shutil.which("groff"):
        raise Skip("groff is not installed: only the man page's parts were looked at")
    formatted = subprocess.run(["groff", "-man", "-ww", "-Tutf8"], input=done.out,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert not formatted.stderr, formatted.stderr


def test_bash_completion_completes(_):
    if not shutil.which("bash"):
        raise Skip("bash is not installed")
    script = expect(qbench("help", "--completion", "bash")).out
    ask = b"""
COMP_WORDS=(qbench run --prot); COMP_CWORD=2; _qbench; echo "${COMPREPLY[@]}"
COMP_WORDS=(qbench insp); COMP_CWORD=1; _qbench; echo "${COMPREPLY[@]}"
COMP_WORDS=(qbench --act-scale st); COMP_CWORD=2; _qbench; echo "${COMPREPLY[@]}"
"""
    done = subprocess.run(["bash", "-c", script + ask], stdout=subprocess.PIPE, check=True)
    assert done.stdout.split() == [b"--protocol", b"inspect", b"static"], done.stdout


def completion(shell):
    if not shutil.which(shell):
        raise Skip(f"{shell} is not installed")
    return expect(qbench("help", "--completion", shell)).out


def options_of(verb):
    text = expect(qbench("help", verb)).out.decode().split("\nexamples:\n")[0]
    return set(re.findall(r"^ +(?:-\w, )?--([a-z0-9-]+)", text, re.M))


def test_bash_completion_knows_every_option(_):
    script = completion("bash")
    for verb in VERBS:
        ask = f'\nCOMP_WORDS=(qbench {verb} --); COMP_CWORD=2; _qbench; echo "${{COMPREPLY[@]}}"\n'
        done = subprocess.run(["bash", "-c", script + ask.encode()], stdout=subprocess.PIPE, check=True)
        assert {word[2:] for word in done.stdout.decode().split()} == options_of(verb), verb


def test_zsh_completion_is_valid(folder):
    """Parsed by zsh; each specification is one that _arguments takes."""
    (folder / "_qbench").write_bytes(completion("zsh"))
    ask = f"""autoload -Uz compinit; compinit -u -D; source {folder}/_qbench
_arguments() {{ print -rl -- "$@"; }}; _files() {{ : }}
words=(qbench generate --); CURRENT=3; _qbench"""
    done = subprocess.run(["zsh", "-fc", ask], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={**os.environ, "HOME": str(folder)})
    assert done.returncode == 0 and not done.stderr, done
    words = done.stdout.decode().splitlines()
    long = (re.match(r"(?:\(.*?\))?[*]?--([a-z0-9-]+)", word) for word in words)
    assert {found[1] for found in long if found} == options_of("generate"), words
    assert all(re.fullmatch(r"(\(.*?\))?[*]?-[-\w]+=?\[(\\.|[^\[\]:\\])*\](::?(\\.|[^:])*:.*)?", word)
               for word in words if word.lstrip("(").startswith("-")), words


def test_fish_completion_completes(folder):
    script = folder / "qbench.fish"
    script.write_bytes(completion("fish"))
    asks = {"qbench insp": {"inspect"}, "qbench generate --pro": {"--prompt"},
            "qbench run --act-scale st": {"static"}, "qbench help conv": {"convert"}}
    for ask, wanted in asks.items():
        done = subprocess.run(["fish", "--no-config", "-c", f"source {script}; complete -C '{ask}'"],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              env={**os.environ, "HOME": str(folder)})
        words = {line.split("\t")[0] for line in done.stdout.decode().splitlines()}
        assert words == wanted and not done.stderr, (ask, done)


def test_usage_errors_exit_2_with_the_nearest_word(_):
    cases = [
        (["insepct", "x"], "inspect"),
        (["help", "convrt"], "convert"),
        (["--schme", "a", "m"], "--scheme"),
        (["run", "--no-sped", "m"], "--no-speed"),
        (["--temp", "1", "m"], "an option of generate"),
        (["--threads", "abc", "m"], "from 1 to 256"),
        (["--threads", "0", "m"], "from 1 to 256"),
        (["--threads", "99999999999999999999", "m"], "from 1 to 256"),
        (["generate", "--top-p", "2", "m"], "from 0 to 1"),
        (["generate", "--temp", "nan", "m"], "from 0 to 100"),
        (["--weight-axis", "group:x", "m"], "group:N"),
        (["--scheme", "coarse,fin", "m"], "found 'fin', did you mean 'fine'?"),
        (["--scheme", "nosuch", "m"], "expected one of full, "),
        (["--scheme", "fine,,full", "m"], "empty item"),
        (["--scheme=", "m"], "empty value"),
        (["--quiet=1", "m"], "takes no value"),
        (["--json"], "expected FILE"),
        (["-?", "m"], "no such option"),
        (["run"], "too few"),
        (["inspect", "a", "b"], "too many"),
        (["kernels", "--kernel", "nosuch"], "nosuch"),
    ]
    for args, hint in cases:
        done = expect(qbench(*args), 2)
        assert hint in done.err.decode(), f"{args}: {done}"
        assert not done.out, done


def test_every_verb_without_arguments(_):
    for verb in VERBS:
        needs_some = verb not in ("presets", "kernels", "doctor", "help", "version")
        expect(qbench(verb), 2 if needs_some else 0)


def test_every_verb_refuses_an_unknown_option(_):
    for verb in VERBS:
        done = expect(qbench(verb, "--nosuchthing"), 2)
        assert b"nosuchthing" in done.err


def test_a_word_that_is_no_verb_means_run(_):
    done = expect(qbench("no/such/file.bin"), 3)
    assert b"no/such/file.bin" in done.err


def test_standard_output_closed_or_full(_):
    for target in (">&-", ">/dev/full"):
        done = subprocess.run(["sh", "-c", f'"{support.QBENCH}" help {target}'],
                              stderr=subprocess.PIPE)
        assert done.returncode == 3 and done.stderr.count(b"\n") == 1, (target, done)
        done = subprocess.run(["sh", "-c", f'"$0" verify "$1" {target}', support.QBENCH,
                               support.ROOT / "share" / "models" / "gpt2-8m-ours.bin"],
                              stderr=subprocess.PIPE)
        reason = b"Bad file descriptor" if "&-" in target else b"No space left"
        assert done.returncode == 3 and reason in done.stderr, (target, done)


def test_reader_that_leaves_early_ends_quietly(_):
    """qbench help | (reads nothing): no message, and not an error of ours."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([support.QBENCH, "help", "--man"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == -13 and not done.stderr, done


def test_kernels_lists_a_used_row_for_each_operation(_):
    done = expect(qbench("kernels"))
    operations = re.split(rb"^(?=\S)", done.out, flags=re.M)[1:]
    assert operations
    for operation in operations:
        if re.search(rb" cpu +\w", operation):  # some operations are the GPU's alone
            assert len(re.findall(rb" used$", operation, re.M)) == 1, operation
    plain = expect(qbench("kernels", env={"QB_DISABLE": "avx2"})).out
    assert not re.search(rb"avx\S+ +cpu +used", plain), plain


def test_a_word_of_qb_disable_that_names_nothing_is_said(_):
    def said(disabled, *args):
        return expect(qbench("kernels", *args, env={"QB_DISABLE": disabled})).err.decode()

    for right in ("", "avx2,avx512,avx512vnni,avx512bf16", "cpu,cuda", ",gemm_s8/avx2,gemm_s8/ref,"):
        assert not said(right), right
    assert said("avx2,axv512") == (
        'qbench: note: QB_DISABLE: found "axv512", expected a feature, a device or a row of '
        "`qbench kernels`; did you mean avx512?\n")
    assert said("gemm_s8/avx").endswith("did you mean gemm_s8/avx2?\n")
    assert said("all").endswith("`qbench kernels`\n") and said("x" * 500).count("\n") == 1
    assert not said("axv512", "--quiet")
