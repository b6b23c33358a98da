"""Registries: objects by name."""


class Registry:
    """A table of functions and classes by name.

    Use as a decorator, `@REGISTRY.register()`, or as a call, `REGISTRY.register(MyClass)`.
    """

    def __init__(self, name):
        self._name = name
        self._obj_map = {}

    def register(self, obj=None, force=False):
        """Register `obj` under its `__name__`.

        Raises:
            KeyError: the name is taken by another object and `force` is False.
        """
        if obj is None:
            return lambda decorated: self.register(decorated, force=force)
        name = obj.__name__
        if name in self._obj_map and not force:
            raise KeyError(f'"{name}" is already registered in the {self._name} registry')
        self._obj_map[name] = obj
        return obj

    def get(self, name):
        """Return the object registered as `name`.

        Raises:
            KeyError: there is none.
        """
        if name not in self._obj_map:
            names = ", ".join(self._obj_map) or "nothing"
            raise KeyError(f'"{name}" is not in the {self._name} registry, which has {names}')
        return self._obj_map[name]

    def registered_names(self):
        """Return the list of names, in order of registration."""
        return list(self._obj_map)
