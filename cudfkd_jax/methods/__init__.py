"""Distillation methods behind one contract: `base.MethodSpec` describes a method, `base.Method` runs it."""

from collections.abc import Mapping

from cudfkd_jax.methods import adadfkd, adi, cmi, cudfkd, dafl, dfad, dfq, fastdfkd, mb_dfkd, pre_dfkd, zskt
from cudfkd_jax.methods.base import MethodSpec
from cudfkd_jax.runtime.errors import UserError, choose
from cudfkd_jax.runtime.imports import import_object, is_import_path

METHODS: Mapping[str, MethodSpec] = {
    module.SPEC.name: module.SPEC
    for module in (cudfkd, dafl, zskt, dfad, dfq, adi, cmi, mb_dfkd, pre_dfkd, adadfkd, fastdfkd)
}


def find(name: str, kind: str = "method", more: tuple[str, ...] = ()) -> MethodSpec:
    """Returns the method called `name`, or the `MethodSpec` at the import path `package.module:NAME`.

    Args:
        name: a key of `METHODS` or an import path.
        kind: describes the name in messages.
        more: further names that the caller accepts; listed in messages.

    Raises:
        UserError: there is no such method; the message lists the valid names.
    """
    if not is_import_path(name):
        choose(kind, name, (*more, *METHODS))
        return METHODS[name]
    spec = import_object(name)
    if not isinstance(spec, MethodSpec):
        raise UserError(f"{name} is a {type(spec).__name__}, not a cudfkd_jax.methods.base.MethodSpec; name one")
    if spec.name in METHODS or not spec.name.isidentifier():
        raise UserError(f"{name} has the name {spec.name!r}; choose an identifier that no other method has")
    return spec
