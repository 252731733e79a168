"""What stands beside the tensors: the chat template, ollama's Modelfile, and how to start other programs."""

import json
from typing import NamedTuple

from imp_kit.prompts import IMAGE, SYSTEM, Template

# An image comes first in a message, and a line break after it, as Imp was trained. llama-server hands over one text,
# with a marker where its client put the image; others hand over a list of parts.
CHAT = """\
{%- set state = namespace(begun=false) -%}
{%- set system = SYSTEM -%}
{%- if messages and messages[0]['role'] == 'system' -%}
{%- set content = messages[0]['content'] -%}
{%- set system = content if content is string else content[0]['text'] -%}
{%- endif -%}
{{- BEFORE + system + AFTER -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{%- if state.begun -%}{{- LATER -}}{%- endif -%}
{%- set state.begun = true -%}
{%- if message['content'] is string and '<__media' in message['content'] -%}
{%- set marker = '<__media' + message['content'].split('<__media')[1].split('__>')[0] + '__>' -%}
{{- marker + '\\n' + (message['content'].replace(marker, '') | trim) -}}
{%- elif message['content'] is string -%}
{{- message['content'] | trim -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] != 'text' -%}{{- (part['text'] or '<image>') + '\\n' -}}{%- endif -%}
{%- endfor -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}{{- part['text'] | trim -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- TAIL -}}
{%- elif message['role'] == 'assistant' -%}
{{- ANSWER + (message['content'] | trim) + STOP -}}
{%- endif -%}
{%- endfor -%}
"""


class Letters(NamedTuple):
    """A family's template cut at what it is filled with."""

    before: str  # the system prompt
    after: str  # it
    tail: str  # after a question
    answer: str  # before an answer
    stop: str  # after it
    later: str  # before a later question


def letters(template: Template) -> Letters:
    """The texts around system prompt, questions and answers."""
    before, after = template.opening.removesuffix(IMAGE).split(SYSTEM)
    tail = template.first.removeprefix("\n{}")
    later = template.later.removeprefix(template.stop).removesuffix(f"{{}}{tail}")
    return Letters(before, after, tail, template.answer, template.stop, later)


def chat_template(template: Template) -> str:
    """The family's template in Jinja."""
    named = {"SYSTEM": SYSTEM} | {name.upper(): text for name, text in letters(template)._asdict().items()}
    return "".join(f"{{%- set {name} = {json.dumps(text)} -%}}\n" for name, text in named.items()) + CHAT


def modelfile(name: str, template: Template, decoder: str, tower: str, context: int, license: str | None = None) -> str:
    """ollama's Modelfile for two files of one folder; ollama itself puts the image before a question.

    It takes both files by FROM, and knows the tower by its metadata.
    """
    text = {name: f"{{{{ {json.dumps(value)} }}}}" for name, value in letters(template)._asdict().items()}
    licensed = f"LICENSE {license}\n" if license else ""
    return f'''\
# ollama create {name} -f Modelfile
FROM ./{decoder}
FROM ./{tower}
SYSTEM """{SYSTEM}"""
TEMPLATE """{text["before"]}{{{{ .System }}}}{text["after"]}{{{{ range $i, $m := .Messages }}}}\
{{{{ if eq $m.Role "user" }}}}{{{{ if gt $i 1 }}}}{text["later"]}{{{{ end }}}}{{{{ $m.Content }}}}{text["tail"]}\
{{{{ else if eq $m.Role "assistant" }}}}{text["answer"]}{{{{ $m.Content }}}}{text["stop"]}{{{{ end }}}}{{{{ end }}}}"""
PARAMETER temperature 0
PARAMETER num_ctx {context}
PARAMETER stop "{template.stop}"
{licensed}'''


def instructions(name: str, decoder: str, tower: str, *, exact: bool, side: int) -> str:
    """How other programs open the files, as a text file."""
    inexact = f"""
llama.cpp does not know the way in which {name} cuts a text into words. It reads most questions as the kit does, but
those with capital letters or digits in their midst may be read as other tokens.
"""
    return f"""\
{name} for llama.cpp: the language model is {decoder}, the part that sees is {tower}. Keep both in one folder.

llama-server:  llama-server -m {decoder} --mmproj {tower} --temp 0
LM Studio:     put this folder into its models folder, as models/imp-kit/{name}/, then choose {name} and set the
               temperature to 0.
ollama:        ollama create {name} -f Modelfile, then: ollama run {name}

Other programs resize a picture in their own way: they keep its proportions and fill the rest with grey. Imp was trained
on pictures that are squashed to a square. Give them a square picture of {side} x {side} pixels for the same answers as
the kit's.
{inexact if not exact else ""}"""
