"""Read a pickle as data: no class is imported and no function is called.

A pickle is a small program. This interpreter knows the instructions that `torch.save` writes and turns every object
into an `Inert` record of its class name, arguments and state; only names on an allow-list are even recorded, all
others are refused by name. A budget of steps limits time and memory, nesting needs no recursion, and a structure that
contains itself is stored as a reference.

Source: the pickle protocol as documented in Python's `pickletools`.
"""

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO


MAX_STEPS = 1_000_000  # a large checkpoint with its optimizer state needs about 150,000
MAX_BYTES = 64 * 2**20  # limit of one pickle; a large checkpoint has about 1 MB
MAX_KEY = 2**60  # larger integer keys could be chosen to collide in a hash table

MAPPINGS = frozenset({"collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"})
SEQUENCES = frozenset({"builtins.set", "builtins.frozenset", "builtins.list", "builtins.tuple"})
OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # names of Python 2, written by protocols 0 to 2


class PickleRefused(Exception):
    """The pickle contains something that this reader refuses; the message names it."""


class Symbol:
    """The name of an allowed class or function; it cannot be called."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name


class Inert:
    """An object as a pickle describes it: class name, constructor arguments and states. Nothing is executed."""

    __slots__ = ("name", "arguments", "states")

    def __init__(self, name: str, arguments: tuple):
        self.name, self.arguments, self.states = name, arguments, []

    def attributes(self) -> dict:
        """The last plain attribute dictionary the pickle gave this object, or an empty one."""
        for state in reversed(self.states):
            for part in state if isinstance(state, tuple) else (state,):
                if isinstance(part, dict):
                    return part
        return {}


class BoundedStream:
    """A window of a file that never reads beyond its limit and never allocates for a false length."""

    def __init__(self, file: BinaryIO, limit: int):
        self._file, self._left = file, limit

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > self._left:
            raise PickleRefused("it ends in the middle of a value or declares a value larger than itself")
        self._left -= size
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline(min(self._left, 4096))
        self._left -= len(line)
        return line

    def tell(self) -> int:
        return self._file.tell()


class InertUnpickler:
    """Interpreter of one pickle.

    Args:
        is_allowed: decides by full name, `module.qualified_name`, whether a class or function may be recorded.
        call: receives `(name, arguments)` of a recorded call and returns its value, or `None` for an `Inert`.
        persistent_load: receives the tuple of a persistent id (a storage) and returns its value.
    """

    def __init__(
        self,
        is_allowed: Callable[[str], bool],
        call: Callable[[str, tuple], Any] = lambda name, arguments: None,
        persistent_load: Callable[[Any], Any] | None = None,
    ):
        self.is_allowed, self.call, self.persistent_load = is_allowed, call, persistent_load

    def load(self, file: BinaryIO, limit: int = MAX_BYTES) -> Any:
        """Read one pickle from `file`, leaving it just behind; at most `limit` bytes.

        Raises:
            PickleRefused: truncated, damaged, too large, or holding something that is not allowed.
        """
        self.stack, self.marks, self.memo, self.steps = [], [], {}, 0
        try:
            for opcode, argument, _ in pickletools.genops(BoundedStream(file, min(limit, MAX_BYTES))):
                self.spend(1)
                if opcode.name == "STOP":
                    return self.stack.pop()
                self.step(opcode.name, argument)
        except PickleRefused:
            raise
        except Exception as error:  # any error that hostile bytes cause means the same
            raise PickleRefused(f"it is damaged or truncated ({type(error).__name__})") from error
        raise PickleRefused("it ends without a result")

    def spend(self, amount: int) -> None:
        self.steps += amount
        if self.steps > MAX_STEPS:
            raise PickleRefused(f"it takes more than {MAX_STEPS:,} steps, far beyond any OFA checkpoint")

    def step(self, name: str, argument: Any) -> None:
        if name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in LITERALS:
            self.stack.append(argument)
        elif name in INSTRUCTIONS:
            INSTRUCTIONS[name](self, argument)
        elif name not in ("PROTO", "FRAME"):
            raise PickleRefused(f"it uses the pickle instruction {name}, which torch.save never writes")

    # Stack and memo

    def mark(self, _) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def discard_to_mark(self, _) -> None:
        self.pop_mark()

    def pop(self, _) -> None:
        self.stack.pop()

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def memoize(self, _) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    # Containers

    def take(self, count: int) -> tuple:
        if len(self.stack) < count:
            raise IndexError(count)
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return items

    def make_tuple(self, _) -> None:
        items = tuple(self.pop_mark())
        self.stack.append(items)

    def make_list(self, _) -> None:
        items = self.pop_mark()
        self.stack.append(items)

    def make_dict(self, _) -> None:
        items = self.pop_mark()
        self.stack.append(self.fill({}, items))

    def append(self, _) -> None:
        item = self.stack.pop()
        self.extend([item])

    def appends(self, _) -> None:
        self.extend(self.pop_mark())

    def extend(self, items: list) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Inert):
            target.states.append(items)
        else:
            raise TypeError(type(target))

    def set_item(self, _) -> None:
        key, value = self.take(2)
        self.fill(self.stack[-1], [key, value])

    def set_items(self, _) -> None:
        items = self.pop_mark()
        self.fill(self.stack[-1], items)

    def fill(self, target: Any, items: list) -> Any:
        """Put keys and values, in turns, into a dictionary; keys are plain values so that hashing is harmless."""
        if isinstance(target, Inert):
            target.states.append(self.fill({}, items))
            return target
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError(type(target))
        for key, value in zip(items[::2], items[1::2]):
            if type(key) not in KEY_TYPES or (type(key) is int and abs(key) > MAX_KEY):
                raise PickleRefused(f"a dictionary in it has a key of type {type(key).__name__}")
            target[key] = value
        return target

    # Objects are recorded, not created

    def find(self, name: str) -> Symbol:
        module, _, qualified_name = name.partition(" ")
        full_name = f"{OLD_MODULES.get(module, module)}.{qualified_name}"
        if not self.is_allowed(full_name):
            raise PickleRefused(f"it wants to use {shown(full_name)}, which no OFA checkpoint contains")
        return Symbol(full_name)

    def find_global(self, argument: str) -> None:
        self.stack.append(self.find(argument))

    def find_global_on_stack(self, _) -> None:
        module, qualified_name = self.take(2)
        if type(module) is not str or type(qualified_name) is not str or len(module) + len(qualified_name) > 500:
            raise PickleRefused("it names a class by something that is not a name")
        self.stack.append(self.find(f"{module} {qualified_name}"))

    def reduce(self, _) -> None:
        symbol, arguments = self.take(2)
        self.stack.append(self.record(symbol, arguments))

    def new_object_with_keywords(self, _) -> None:
        symbol, arguments, _ = self.take(3)
        self.stack.append(self.record(symbol, arguments))

    def record(self, symbol: Any, arguments: Any) -> Any:
        if not isinstance(symbol, Symbol) or not isinstance(arguments, tuple):
            raise PickleRefused("it calls something that is not a class or function by name")
        if symbol.name in MAPPINGS:
            return self.copy_mapping(arguments)
        if symbol.name in SEQUENCES:
            return self.copy_sequence(arguments)
        value = self.call(symbol.name, arguments)
        return Inert(symbol.name, arguments) if value is None else value

    def copy_mapping(self, arguments: tuple) -> dict:
        source = next((argument for argument in arguments if isinstance(argument, (dict, list))), [])
        self.spend(len(source))
        pairs = source.items() if isinstance(source, dict) else source
        return self.fill({}, [part for key, value in pairs for part in (key, value)])

    def copy_sequence(self, arguments: tuple) -> list:
        source = arguments[0] if arguments and isinstance(arguments[0], (list, tuple)) else ()
        self.spend(len(source))
        return list(source)

    def build(self, _) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Inert):
            target.states.append(state)  # kept by reference: repeated copies could fill the memory
        elif not isinstance(target, dict):  # metadata of an OrderedDict of weights, which is not needed
            raise PickleRefused(f"it sets attributes of a {type(target).__name__}")

    def load_persistent(self, _) -> None:
        if self.persistent_load is None:
            raise PickleRefused("it refers to outside data where none can be")
        self.stack.append(self.persistent_load(self.stack.pop()))


def shown(value: Any) -> str:
    """Any `value` as a short printable part of a message."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**64:
        return "a number beyond 64 bits"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if not isinstance(value, str):
        return f"a value of type {type(value).__name__}"
    text = value if len(value) <= 120 else value[:117] + "..."
    return ascii(text)[1:-1] if not text.isprintable() else text


KEY_TYPES = frozenset({str, int, float, bool, bytes, type(None), Symbol})  # the last has the hash of its place
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
LITERALS = frozenset(
    "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES "
    "BINBYTES8 BINSTRING SHORT_BINSTRING".split()
)
INSTRUCTIONS: dict[str, Callable[[InertUnpickler, Any], None]] = {
    "MARK": InertUnpickler.mark,
    "POP": InertUnpickler.pop,
    "POP_MARK": InertUnpickler.discard_to_mark,
    "BINPUT": InertUnpickler.put,
    "LONG_BINPUT": InertUnpickler.put,
    "MEMOIZE": InertUnpickler.memoize,
    "BINGET": InertUnpickler.get,
    "LONG_BINGET": InertUnpickler.get,
    "TUPLE": InertUnpickler.make_tuple,
    "TUPLE1": lambda self, _: self.stack.append(self.take(1)),
    "TUPLE2": lambda self, _: self.stack.append(self.take(2)),
    "TUPLE3": lambda self, _: self.stack.append(self.take(3)),
    "EMPTY_LIST": lambda self, _: self.stack.append([]),
    "EMPTY_DICT": lambda self, _: self.stack.append({}),
    "EMPTY_SET": lambda self, _: self.stack.append([]),  # a list is enough, since sets are never read
    "LIST": InertUnpickler.make_list,
    "DICT": InertUnpickler.make_dict,
    "FROZENSET": InertUnpickler.make_list,
    "APPEND": InertUnpickler.append,
    "APPENDS": InertUnpickler.appends,
    "ADDITEMS": InertUnpickler.appends,
    "SETITEM": InertUnpickler.set_item,
    "SETITEMS": InertUnpickler.set_items,
    "GLOBAL": InertUnpickler.find_global,
    "STACK_GLOBAL": InertUnpickler.find_global_on_stack,
    "REDUCE": InertUnpickler.reduce,
    "NEWOBJ": InertUnpickler.reduce,
    "NEWOBJ_EX": InertUnpickler.new_object_with_keywords,
    "BUILD": InertUnpickler.build,
    "BINPERSID": InertUnpickler.load_persistent,
}
