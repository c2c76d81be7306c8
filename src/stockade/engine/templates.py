"""Which template a run is begun from.

A language's file says what kind of template it has. The operator's configuration gives that one modules that are
imported already, or adds templates beside it, which requests name. A template saves time and changes nothing else, so
wherever there is none after all, a run starts from nothing.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from stockade.config import ConfigError, TemplateConfig
from stockade.engine.language_records import Language
from stockade.engine.languages import Languages
from stockade.errors import Invalid, UnknownLanguage
from stockade.model import Actor, Template, TemplateKind

__all__ = ["NOTHING", "Templates", "UnknownTemplate"]

NOTHING = "none"
"""Names no template: the run starts from nothing."""

_ANNOUNCED = "python"
"""The language whose default template is ready from the start; others follow demand."""


class UnknownTemplate(Invalid):
    """The language has no template of this name."""

    code = "template.unknown"

    def __init__(self, name: str, language: str, known: tuple[str, ...]) -> None:
        self.name = name
        self.language = language
        self.known = known
        super().__init__(f"unknown template {name!r} for {language}; known: {', '.join(known)}")


class Templates:
    """All templates that requests can have."""

    def __init__(
        self, languages: Languages, configured: Mapping[str, TemplateConfig] | None = None, *, enabled: bool = True
    ) -> None:
        """Take the operator's templates.

        Args:
            enabled: whether anything is begun from a template. Their names, and their images, count in any case.

        Raises:
            ConfigError: one is for an unknown language, or for one that cannot have it.
        """
        self._languages = languages
        self._configured = {name: _checked(name, one, languages) for name, one in (configured or {}).items()}
        self._enabled = enabled
        self._made: dict[tuple[str, int, str, bool], Language] = {}

    def known(self, language: Language) -> tuple[str, ...]:
        """What requests for *language* may name."""
        own = (language.name,) if language.template is not None else ()
        added = sorted(name for name, one in self._configured.items() if one.language == language.name)
        return (NOTHING, *dict.fromkeys((*own, *added)))

    def check(self, language: Language, name: str | None) -> None:
        """Refuse a *name* that no template of *language* has.

        Raises:
            UnknownTemplate: the error lists those that there are.
        """
        if name is not None and name not in (known := self.known(language)):
            raise UnknownTemplate(name, language.name, known)

    def chosen(self, actor: Actor, language: Language, name: str | None) -> Language:
        """*language* as a run of *actor* is to have it: in the template's image, and with its template or none.

        Args:
            name: what the request names; `None` for the language's default.

        Raises:
            UnknownTemplate: see `check`.
        """
        name = name or language.name
        used = self._enabled and actor.templates
        # Records are made once: a run's budget is small.
        key = (language.name, language.variant, name, used)
        made = self._made.get(key)
        if made is None:
            if name != language.name:
                self.check(language, name)
            made = self._made[key] = self._made_for(language, name, used=used)
        return made

    def announced(self) -> Iterator[Language]:
        """What is to be ready from the start: the installed languages of configured templates, each as `chosen`."""
        if not self._enabled:
            return
        wanted = {_ANNOUNCED: _ANNOUNCED, **{name: one.language for name, one in self._configured.items()}}
        for name, owner in wanted.items():
            try:
                language = self._languages.find(owner)
            except UnknownLanguage:
                continue
            if self._languages.is_available(owner) and language.template is not None:
                yield self._made_for(language, name, used=True)

    def _made_for(self, language: Language, name: str, *, used: bool) -> Language:
        one = self._configured.get(name)
        if one is not None and one.image:
            language = replace(language, image=one.image)
        if not used or name == NOTHING or language.template is None:
            return replace(language, template=None)
        return language if one is None else replace(language, template=_with(language.template, one))


def _with(template: Template, one: TemplateConfig) -> Template:
    # Another variant of the language may have another kind, which imports nothing ahead.
    return replace(template, preload=one.preload) if template.kind is TemplateKind.FORK else template


def _checked(name: str, one: TemplateConfig, languages: Languages) -> TemplateConfig:
    """*one* with its language's own name.

    Raises:
        ConfigError: see `Templates`.
    """
    place = f"templates.{name}"
    if name == NOTHING:
        raise ConfigError(f"{place}: requests say {NOTHING!r} to start from nothing; choose another name")
    namesake = _find(languages, name)
    if namesake is not None and name != namesake.name:
        raise ConfigError(
            f"{place}: is another name of {namesake.name}; call it {namesake.name!r} to configure the template that "
            "its runs have by default, or choose another name"
        )
    asked = one.language or (namesake.name if namesake is not None else _ANNOUNCED)
    language = _find(languages, asked)
    if language is None:
        raise ConfigError(f"{place}.language: unknown language {asked!r}; `stockade languages` lists them")
    if namesake is not None and language.name != namesake.name:
        raise ConfigError(f"{place}.language: must be {name!r}, which runs have by default (got {asked!r})")
    if language.template is None:
        raise ConfigError(f"{place}.language: {language.name} has no template; its file would need a [template]")
    if one.image and language.compile is not None:
        raise ConfigError(f"{place}.image: {language.name} is compiled in its language's image; leave it out")
    if one.preload and language.template.kind is not TemplateKind.FORK:
        raise ConfigError(f"{place}.preload: {language.name} cannot import ahead; leave it out")
    return replace(one, language=language.name)


def _find(languages: Languages, name: str) -> Language | None:
    try:
        return languages.find(name)
    except UnknownLanguage:
        return None
