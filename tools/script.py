"""What scripts share that call the program: what they say and how they end. Standard library only."""
import pathlib
import sys

INTERRUPTED = 130  # exit code of a program that Ctrl-C ended


class Failed(RuntimeError):
    """The program ended with an error, which it said itself."""

    def __init__(self, code):
        super().__init__(f"the program ended with exit code {code}")
        self.code = code


def tell(who, text):
    """A line at once, so that those of two threads do not mix."""
    sys.stderr.write(f"{who}: {text}\n")
    sys.stderr.flush()


def say(text):
    tell(pathlib.Path(sys.argv[0]).stem, text)


def stop(text, code=2):
    say(text)
    sys.exit(code)


def split_more(words):
    """Words before -- and those behind it."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1:]


def run_main(main):
    """Ends with the exit code that main returns, or with that of the program where it failed."""
    try:
        sys.exit(main())
    except Failed as error:
        sys.exit(error.code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
