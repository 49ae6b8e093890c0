"""The requests one model is answering: between a transport that asks again and again, and an engine that runs by itself.

The transport calls `step` with every open request; each gets a piece of its answer: more, the last, or the only one.
A request that is not asked for any more has lost its client and is cancelled. Knows neither TorchServe nor torch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from lmd_worker.api import prompts
from lmd_worker.api.documents import wrong
from lmd_worker.api.generation import Answer, Call, Generation, Part, Reply, refusal
from lmd_worker.api.prompts import Chat, Plain, Prompt
from lmd_worker.api.routes import Routes
from lmd_worker.assembly import TextStream
from lmd_worker.engine.protocol import Constraint, Engine, Sampling
from lmd_worker.engine.weighing import Both, Weights
from lmd_worker.errors import BadRequestError
from lmd_worker.session import Choice, Session
from lmd_worker.text import Text

STEP_SECONDS = 0.1
"""After this long a step ends with the engine's turn, though there be nothing to say: requests that have arrived are seen by the next."""
LONGEST_STEP_SECONDS = 0.5
"""And after this long in the midst of a turn."""
RETURN_SECONDS = 0.02
"""So long when the step before has ended an answer: its client may ask again at once, and then begins with the next turn."""
SILENCE_SECONDS = 2.0
"""Without a step for this long while requests run, all clients are gone: the transport stops asking when nobody is left."""
SILENT_LOOKS = 10
"""As many looks must have found it silent too: a process that was itself held up has neither been asked nor looked."""
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
        routes: Routes,
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
        self._refused: Counter[int] = Counter()
        self._last_step = clock()
        self._silent_looks = 0
        self._may_return = False

    @property
    def running(self) -> int:
        """Requests whose answer is not finished."""
        return sum(not session.ended for session in list(self._open.values()))

    @property
    def refused(self) -> Mapping[int, int]:
        """How many new requests were answered with an error, by HTTP status."""
        return dict(self._refused)

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
            self._may_return = any(answer.part is not Part.MORE for answer in answers)
            self._publish_count()
            self._last_step = self._clock()
            self._silent_looks = 0
            return answers

    def cancel_if_silent(self) -> int:
        """Cancel what runs when no step came for `SILENCE_SECONDS`; return how many requests that ended. Called ten times a second.

        They stay known until a step does not name them: a transport that was only slow gets them ended in its words.
        """
        if not self._lock.acquire(blocking=False):
            return 0
        try:
            self._silent_looks += 1
            silent = self._clock() - self._last_step > SILENCE_SECONDS and self._silent_looks >= SILENT_LOOKS
            lost = [session for session in self._open.values() if silent and not session.ended]
            for session in lost:
                self._cancel(session)
                session.fail("The request was cancelled, as its client seemed to be gone.")
            self._publish_count()
            return len(lost)
        finally:
            self._lock.release()

    def _forget_all_but(self, request_ids: set[str]) -> None:
        for request_id in [known for known in self._open if known not in request_ids]:
            self._cancel(self._open.pop(request_id))

    def _cancel(self, session: Session) -> None:
        for choice in session.running:
            self._engine.cancel(choice.engine_id)

    def _admit(self, rows: Sequence[Row]) -> dict[str, Answer]:
        """Start what can be started and return answers for the rest."""
        at_once: dict[str, Answer] = {}
        for row in rows:
            answer = self._begin(row)
            if answer is not None:
                at_once[row.request_id] = answer
                if answer.status >= HTTPStatus.BAD_REQUEST:
                    self._refused[answer.status] += 1
        return at_once

    def _begin(self, row: Row) -> Answer | None:
        """Answer one new request at once or open a session for it; a failure stays its own."""
        try:
            opening = self._routes(row.call.path)(row.call)
            if isinstance(opening, Answer):
                return opening
            if self._engine.failure() is not None:
                return refusal(BadRequestError(ENGINE_GONE, 503))
            self._open[row.request_id] = self._submit(row.request_id, *opening)
        except BadRequestError as error:
            return refusal(error)
        except Exception as error:  # a tokenizer's or template's own; its text may quote the prompt, so it is not told
            log.error("A request could not be started: error=%s", type(error).__name__)  # noqa: TRY400
            return refusal(BadRequestError("The request could not be started; this is the server's fault.", 500))
        return None

    def _submit(self, request_id: str, generation: Generation, reply: Reply) -> Session:
        """Queue every choice of a request, or none of them."""
        self._check_number(generation)
        constraint = self._constraints(generation)
        encoded = [prompts.tokens(prompt, self._text, self._engine.vocabulary_size) for prompt in generation.prompts]
        most = [self._max_tokens(generation, len(tokens)) for tokens in encoded]
        choices: list[Choice] = []
        try:
            for prompt, tokens, max_tokens in zip(generation.prompts, encoded, most, strict=True):
                for alternative in range(generation.choices):
                    number = len(choices)
                    choice = self._choice(number, f"{request_id}.{number}", generation, prompt, tokens)
                    sampling = self._sampling(generation, max_tokens, alternative, constraint())
                    self._engine.submit(choice.engine_id, tokens, sampling)
                    choices.append(choice)
        except Exception:
            for choice in choices:
                self._engine.cancel(choice.engine_id)
            raise
        return Session(reply, choices, prompt_tokens=sum(map(len, encoded)), streamed=generation.stream)

    def _check_number(self, generation: Generation) -> None:
        """Refuse more answers to one request than there will ever be room for; a later try would not help."""
        wanted, room = len(generation.prompts) * generation.choices, self._engine.capacity
        if room is not None and wanted > room:
            parameter = "n" if generation.choices > 1 else "prompt"
            raise BadRequestError(f"{parameter}: {wanted} answers are asked for at once; this model takes {room}.", param=parameter)

    def _choice(self, number: int, engine_id: str, generation: Generation, prompt: Prompt, tokens: Sequence[int]) -> Choice:
        """Return an empty answer. One to a chat begins a text of its own; any other goes on with the prompt's."""
        before = () if isinstance(prompt, Chat) else tokens
        echo = "" if not generation.echo else prompt.text if isinstance(prompt, Plain) else self._text.decode(tokens)
        return Choice(
            number,
            engine_id,
            TextStream(self._text.decode, generation.stop, before),
            stop_token_ids=self._text.stop_token_ids,
            token_bytes=self._text.token_bytes,
            opening=echo,
        )

    def _sampling(self, generation: Generation, max_tokens: int, alternative: int, constraint: Constraint | None) -> Sampling:
        """Return one choice's parameters; alternatives to one prompt differ in nothing but their seed, which counts on."""
        return Sampling(
            max_tokens=max_tokens,
            temperature=generation.temperature,
            top_p=generation.top_p,
            top_k=min(generation.top_k, self._engine.vocabulary_size),
            seed=None if generation.seed is None else (generation.seed + alternative) % 2**63,
            stop_token_ids=self._text.stop_token_ids,
            logprobs=generation.logprobs,
            constraint=constraint,
        )

    def _constraints(self, generation: Generation) -> Callable[[], Constraint | None]:
        """Return what makes each choice its own constraint, or none."""
        vocabulary = self._engine.vocabulary_size
        if generation.token_weights and max(generation.token_weights) >= vocabulary:
            raise wrong("logit_bias", f"names a token the model does not know; its vocabulary has {vocabulary} tokens.")
        penalties = {"presence": generation.presence_penalty, "frequency": generation.frequency_penalty}
        weighs = bool(generation.token_weights) or any(penalties.values())
        grammar = None if generation.schema is None else self._text.grammar(generation.schema)

        def constraint() -> Constraint | None:
            weights = [Weights(generation.token_weights, **penalties)] if weighs else []
            found: list[Constraint] = [*weights, *([grammar()] if grammar else [])]
            return Both(found) if len(found) > 1 else next(iter(found), None)

        return constraint

    def _max_tokens(self, generation: Generation, prompt_tokens: int) -> int:
        """Return the tokens to make, so that prompt and answer fit the context together."""
        context = self._engine.context_tokens
        left = context - prompt_tokens
        asked = generation.max_tokens
        if left <= 0:
            raise BadRequestError(
                f"The prompt has {prompt_tokens} tokens, which leaves no room for an answer in the context of {context}.",
                code="context_length_exceeded",
            )
        if asked is None:
            default = generation.default_max_tokens
            return left if default is None else min(default, left)
        if asked > left:
            raise BadRequestError(
                f"max_tokens: the prompt has {prompt_tokens} tokens, so at most {left} of the context of {context} are left.",
                param="max_tokens",
                code="context_length_exceeded",
            )
        return asked

    def _wait_for_news(self) -> None:
        begun = self._clock()
        enough, longest = (RETURN_SECONDS, RETURN_SECONDS) if self._may_return else (STEP_SECONDS, LONGEST_STEP_SECONDS)
        while True:
            self._collect()
            waiting = [choice.engine_id for session in self._open.values() for choice in session.running]
            waited = self._clock() - begun
            if waited >= enough or not waiting or any(session.has_news for session in self._open.values()):
                return
            self._engine.wait(waiting, longest - waited)

    def _collect(self) -> None:
        """Move the engine's news into the sessions."""
        failure = self._engine.failure()
        for session in self._open.values():
            for choice in session.running:
                error = choice.take(self._engine.progress(choice.engine_id))
                if choice.cut_short:
                    self._engine.cancel(choice.engine_id)
                if error is not None:
                    self._cancel(session)
                    session.fail(error)
                    break
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
