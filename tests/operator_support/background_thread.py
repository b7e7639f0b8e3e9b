"""Threads and event loops that run for the length of a ``with`` block and raise their exception at its end."""

from __future__ import annotations

import abc
import asyncio
import threading
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from support.waiting import eventually
from tonnage_operator.app import App

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

T = TypeVar("T")
AnyApp = TypeVar("AnyApp", bound=App)


class BackgroundThread(abc.ABC):
    """A thread that starts with a ``with`` block and is stopped and joined at its end.

    ``error`` is the exception that ended the thread; leaving the block raises it.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.stop_requested = threading.Event()
        self.started = threading.Event()
        self._thread = threading.Thread(target=self._run_and_keep_error, name=type(self).__name__, daemon=True)

    @abc.abstractmethod
    def run(self) -> None:
        """Runs in the thread until ``request_stop`` is called."""

    def request_stop(self) -> None:
        self.stop_requested.set()

    def start(self) -> None:
        self._thread.start()

    def raise_error(self) -> None:
        """Raises ``error`` if there is one."""
        if self.error:
            raise self.error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self.request_stop()
        self._thread.join(60)
        assert not self._thread.is_alive(), f"{self._thread.name} did not stop within 60 s"
        self.raise_error()

    def _run_and_keep_error(self) -> None:
        try:
            self.run()
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            self.error = error
        finally:
            self.started.set()


class EventLoopThread(BackgroundThread):
    """An event loop in a thread. ``start`` returns when ``main`` has set ``started``."""

    loop: asyncio.AbstractEventLoop

    @abc.abstractmethod
    async def main(self) -> None:
        """Runs in the event loop: sets ``started`` once it can be used, and returns after ``request_stop``."""

    def run(self) -> None:
        async def run() -> None:
            self.loop = asyncio.get_running_loop()
            await self.main()
            await asyncio.sleep(0.3)  # aiohttp closes TLS connections in the background

        asyncio.run(run())

    def start(self) -> None:
        super().start()
        assert self.started.wait(10)
        self.raise_error()

    def run_coroutine(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the loop and returns its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def call_in_loop(self, function: Callable[[], T]) -> T:
        """Calls a function in the loop, where nothing else runs at the same time, and returns its result."""

        async def call() -> T:
            return function()

        return self.run_coroutine(call())


class AppThread(EventLoopThread, Generic[AnyApp]):
    """A controller, webhook or gate in a thread. The ``with`` block begins when it is ready."""

    app: AnyApp

    @abc.abstractmethod
    def create_app(self) -> AnyApp:
        """Creates the app, in its event loop."""

    async def main(self) -> None:
        self.app = self.create_app()
        self.started.set()
        await self.app.run()

    def request_stop(self) -> None:
        self.loop.call_soon_threadsafe(self.app.stopping.set)

    def __enter__(self) -> Self:
        if not self.started.is_set():
            self.start()
        try:
            eventually(lambda: self.error or self.app.ready.is_set(), timeout=20)
        except AssertionError:
            self.__exit__()
            raise
        self.raise_error()
        return self
