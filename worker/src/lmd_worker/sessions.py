"""The requests one model is answering: between a transport that asks again and again, and an engine that runs by itself.

The transport calls `step` with every open request; each gets a piece of its answer: more, the last, or the only one.
A request that is not asked for any more has lost its client and is cancelled. Knows neither TorchServe nor torch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lmd_worker.api.generation import Answer, Call, Generation, Part, Reply, Route, refusal
from lmd_worker.engine.protocol import Engine, Sampling
from lmd_worker.errors import BadRequestError
from lmd_worker.session import Session
from lmd_worker.text import Text

DEFAULT_MAX_TOKENS = 256
STEP_SECONDS = 0.1
"""The longest a step waits for news; a request that arrives meanwhile is seen only by the next step."""
SILENCE_SECONDS = 2.0
"""Without a step for this long while requests run, all clients are gone: the transport stops asking when nobody is left."""
ENGINE_GONE = "The model has stopped and is being restarted; try again."

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Row:
    """One open request of a step; `call` is its content, for a request already known it does not matter."""

    request_id: str
    call: Call


class Sessions:
    """All requests of one rank 0; `step` and `cancel_if_silent` may be called by different threads."""

    def __init__(
        self,
        engine: Engine,
        text: Text,
        routes: Mapping[str, Route],
        *,
        count_changed: Callable[[int], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._text = text
        self._routes = routes
        self._count_changed = count_changed
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[str, Session] = {}
        self._counted = 0
        self._last_step = clock()

    @property
    def running(self) -> int:
        """Requests whose answer is not finished."""
        return sum(not session.ended for session in list(self._open.values()))

    def step(self, rows: Sequence[Row]) -> list[Answer]:
        """Return one piece for each open request, in order, as soon as one of them has something to say.

        New requests are admitted or refused first; a refusal goes out at once, and with it what the others have by then.
        """
        with self._lock:
            self._forget_all_but({row.request_id for row in rows})
            at_once = self._admit([row for row in rows if row.request_id not in self._open])
            self._publish_count()
            if at_once:
                self._collect()
            else:
                self._wait_for_news()
            answers = [at_once.get(row.request_id) or self._next_piece(row.request_id) for row in rows]
            self._publish_count()
            self._last_step = self._clock()
            return answers

    def cancel_if_silent(self) -> int:
        """Cancel what runs when no step came for `SILENCE_SECONDS`; return how many requests that ended.

        They stay known until a step does not name them: a transport that was only slow gets them ended in its words.
        """
        if not self._lock.acquire(blocking=False):
            return 0
        try:
            silent = self._clock() - self._last_step > SILENCE_SECONDS
            lost = {request_id: session for request_id, session in self._open.items() if silent and not session.ended}
            for request_id, session in lost.items():
                self._engine.cancel(request_id)
                session.fail("The request was cancelled, as its client seemed to be gone.")
            self._publish_count()
            return len(lost)
        finally:
            self._lock.release()

    def _forget_all_but(self, request_ids: set[str]) -> None:
        for request_id in [known for known in self._open if known not in request_ids]:
            if not self._open.pop(request_id).ended:
                self._engine.cancel(request_id)

    def _admit(self, rows: Sequence[Row]) -> dict[str, Answer]:
        """Start what can be started and return answers for the rest."""
        at_once: dict[str, Answer] = {}
        for row in rows:
            answer = self._begin(row)
            if answer is not None:
                at_once[row.request_id] = answer
        return at_once

    def _begin(self, row: Row) -> Answer | None:
        """Answer one new request at once or open a session for it; a failure stays its own."""
        route = self._routes.get(row.call.path)
        if route is None:
            return refusal("There is no such route.", 404)
        try:
            opening = route(row.call)
            if isinstance(opening, Answer):
                return opening
            if self._engine.failure() is not None:
                return refusal(ENGINE_GONE, 503)
            self._open[row.request_id] = self._submit(row.request_id, *opening)
        except BadRequestError as error:
            return refusal(str(error), error.status)
        except Exception as error:  # a tokenizer's or template's own; its text may quote the prompt, so it is not told
            log.error("A request could not be started: error=%s", type(error).__name__)  # noqa: TRY400
            return refusal("The request could not be started; this is the server's fault.", 500)
        return None

    def _submit(self, request_id: str, generation: Generation, reply: Reply) -> Session:
        prompt = self._prompt_tokens(generation)
        max_tokens = self._max_tokens(generation, len(prompt))
        stop_token_ids = self._text.stop_token_ids
        sampling = Sampling(
            max_tokens=max_tokens,
            temperature=generation.temperature,
            top_p=generation.top_p,
            top_k=min(generation.top_k, self._engine.vocabulary_size),
            seed=generation.seed,
            stop_token_ids=stop_token_ids,
        )
        session = Session(generation, reply, self._text.decode, len(prompt), stop_token_ids)
        self._engine.submit(request_id, prompt, sampling)
        return session

    def _prompt_tokens(self, generation: Generation) -> list[int]:
        if isinstance(generation.prompt, str):
            prompt, field = self._text.encode(generation.prompt), "prompt"
        else:
            turns = [{"role": message.role, "content": message.content} for message in generation.prompt]
            prompt, field = self._text.encode_chat(turns), "messages"
        if not prompt:
            raise BadRequestError(f"{field}: holds no tokens.")
        vocabulary = self._engine.vocabulary_size
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise BadRequestError(f"{field}: holds a token the model does not know; its vocabulary has {vocabulary} tokens.")
        return prompt

    def _max_tokens(self, generation: Generation, prompt_tokens: int) -> int:
        """Return the tokens to make, so that prompt and answer fit the context together."""
        context = self._engine.context_tokens
        left = context - prompt_tokens
        asked = generation.max_tokens
        if asked is None and left > 0:
            return min(DEFAULT_MAX_TOKENS, left)
        if left <= 0:
            raise BadRequestError(f"The prompt has {prompt_tokens} tokens, which leaves no room for an answer in the context of {context}.")
        if asked is None or asked > left:
            raise BadRequestError(
                f"max_tokens: the prompt has {prompt_tokens} tokens, so at most {left} of the context of {context} are left."
            )
        return asked

    def _wait_for_news(self) -> None:
        until = self._clock() + STEP_SECONDS
        while True:
            self._collect()
            waiting = [request_id for request_id, session in self._open.items() if not session.ended]
            left = until - self._clock()
            if left <= 0 or not waiting or any(session.has_news for session in self._open.values()):
                return
            self._engine.wait(waiting, left)

    def _collect(self) -> None:
        """Move the engine's news into the sessions."""
        failure = self._engine.failure()
        for request_id, session in self._open.items():
            if session.ended:
                continue
            session.take(self._engine.progress(request_id))
            if session.cut_short:
                self._engine.cancel(request_id)
            if failure is not None and not session.ended:
                session.fail(ENGINE_GONE)

    def _next_piece(self, request_id: str) -> Answer:
        session = self._open[request_id]
        answer = session.answer()
        if answer.part is not Part.MORE:
            del self._open[request_id]
        return answer

    def _publish_count(self) -> None:
        running = self.running
        if running != self._counted:
            self._counted = running
            self._count_changed(running)
