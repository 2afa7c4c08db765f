#!/usr/bin/env python3
"""prove.py: proves rule I1 for any number of controllers, hosts and VMs, and shows that the proof notices a broken rule.

    No VM is started on a host while anything of its earlier incarnation may still write:
    all places that may run it are clear or fenced.

It states the rules as a transition system: a state, and steps that change it. It then shows with z3 that an invariant
holds in the first state, that no step from any state that keeps it leads to one that does not, and that it implies what
is promised: of one VM at most one writer that its storage does not refuse. Hosts, VMs and controllers are uninterpreted
sorts, so that nothing bounds their number, nor the number of steps.

Every rule that a step relies on has a name (`rules.keeps("...")`). Taking one away is a sabotage: the proof must then
fail, and prints the state and the step that break it. And so that nothing is proven of rules that
forbid everything, three stories are played through the same steps.

Rejected: a model checker with bounds as the only means (`ringfence model` is that, on the real code: it finds, it does
not prove); TLA+ (a second language and a Java runtime for a page of rules).

Exit 0: proven, every sabotage noticed, every story possible. Exit 1: not. docs/VERIFICATION.md maps steps to code.
"""

import itertools
import sys
import time

import z3

# For one question to z3. Too low: a slow machine fails what is true. Too high: a mistake in the rules takes long to be told.
PATIENCE_MS = 60_000


SORTS = {name: z3.DeclareSort(name) for name in ("Host", "Vm", "Ctl")} | {"Int": z3.IntSort(), "Bool": z3.BoolSort()}
numbers = itertools.count()


def some(sorts):
    """Things that are not named yet: any."""
    return [z3.Const(f"{sort.lower()}_{next(numbers)}", SORTS[sort]) for sort in sorts.split()]


def every(sorts, body):
    bound = some(sorts)
    return z3.ForAll(bound, body(*bound))


def exists(sorts, body):
    bound = some(sorts)
    return z3.Exists(bound, body(*bound))


# name: what it is a function of, what it says
STATE = {
    # Controllers. A term has an epoch, and after a restored journal the new journal's epoch; 0: not yet the leader.
    "term": ("Ctl", "Int"),
    "newest": ("", "Int"),
    # The journal: where a VM may run, which incarnation was ordered last and where, which storage fences are kept, and
    # the human's word that a host is off, for this one outage.
    "place": ("Vm Host", "Bool"),
    "incarnation": ("Vm", "Int"),
    "last": ("Vm", "Host"),
    "fence": ("Host", "Bool"),
    "attested": ("Host", "Bool"),
    # What a controller holds as evidence: nothing up to this incarnation of the VM can write from that host, now or later.
    "clear": ("Ctl Vm Host Int", "Bool"),
    # Orders to start: controller, VM, host, incarnation. They stay for ever, so that each may be late, lost or doubled.
    # `late`: it is past the time until which its host may carry it out.
    "order": ("Ctl Vm Host Int", "Bool"),
    "late": ("Ctl Vm Host Int", "Bool"),
    # What an agent remembers durably: the highest term heard, and the highest incarnation ordered or declared void.
    "agent_term": ("Host", "Int"),
    "agent_seen": ("Host Vm", "Int"),
    # Facts, independent of any observer: a QEMU of the VM lives there, a target exports its volume there, the host has
    # power, the storage refuses the host.
    "qemu": ("Vm Host", "Bool"),
    "export": ("Vm Host", "Bool"),
    "up": ("Host", "Bool"),
    "refused": ("Host", "Bool"),
}


class State:
    """One state: each part is a function, so that the state after a step is an expression over the one before."""

    def __init__(self, parts):
        self.parts = parts
        for name, part in parts.items():
            setattr(self, name, part)

    @staticmethod
    def any(prefix=""):
        """Any state at all."""
        parts = {}
        for name, (of, says) in STATE.items():
            of = [SORTS[sort] for sort in of.split()]
            if of:
                parts[name] = z3.Function(prefix + name, *of, SORTS[says])
            else:
                parts[name] = (lambda constant: lambda: constant)(z3.Const(prefix + name, SORTS[says]))
        return State(parts)

    def but(self, **changed):
        return State({**self.parts, **changed})

    def writes(self, vm, host):
        """Something of the VM lives there that may write: its QEMU, or the target that writes for it."""
        return z3.Or(self.qemu(vm, host), self.export(vm, host))

    def may_be_obeyed(self, ctl, vm, host, n):
        """The order may still be carried out."""
        return z3.And(
            self.order(ctl, vm, host, n),
            z3.Not(self.late(ctl, vm, host, n)),
            n > self.agent_seen(host, vm),
            self.term(ctl) >= self.agent_term(host),
        )


def at(part, *here, to):
    """The part with another value in one place."""
    return lambda *args: z3.If(z3.And(*(a == b for a, b in zip(args, here))), to, part(*args))


def most(a, b):
    return z3.If(a > b, a, b)


# ---------------------------------------------------------------------------------------------------------------- rules

SABOTAGES = {
    "claim-only-adds": "what somebody claims replaces the places that may run the VM",
    "every-place": "a permit looks at the host where the VM was ordered last, not at all places",
    "unknown-is-not-dead": "a look that found out nothing counts as dead",
    "full-sight": "'not there' counts from who could not have seen it",
    "same-machine": "another machine's 'not there' counts for the host that was meant",
    "agent-keeps-epoch": "an agent obeys every controller, however old its epoch",
    "agent-keeps-incarnation": "an agent obeys an order for an incarnation that it has seen",
    "agent-remembers": "an agent forgets over a restart what it has seen",
    "orders-become-void": "an agent that says 'not there' does not declare the orders on their way void",
    "orders-expire": "an agent obeys an order that is past its time",
    "wait-for-orders": "a sibling's kill counts though an order may still be on its way",
    "order-names-host": "an agent obeys an order that was meant for another host",
    "exports-write": "a VM counts as gone with its QEMU, whatever its target still writes",
    "lift-when-clean": "a storage fence is lifted before what it holds back is gone",
    "fence-read-back": "a storage fence counts before the storage refuses the host",
    "word-for-one-outage": "an attestation survives the return of the host",
    "census-first": "on a restored journal the places in the backup are believed to be all",
    "restored-fences-unproven": "on a restored journal the storage fences in the backup are believed",
    "restored-takes-new-term": "a restored journal goes on with terms that were used before",
    "evidence-has-incarnation": "evidence for one incarnation is taken for a later one",
    "one-in-office": "the journal accepts the intent of a stale leader",
    "intent-first": "the place is not recorded before the order is sent",
}


class Rules:
    def __init__(self, sabotaged=None):
        self.sabotaged, self.asked = sabotaged, set()

    def keeps(self, rule, condition=None):
        """Whether the rule is kept; given a condition that the rule demands: that, or nothing if the rule is taken away."""
        assert rule in SABOTAGES, rule
        self.asked.add(rule)
        kept = rule != self.sabotaged
        return kept if condition is None else (condition if kept else z3.BoolVal(True))


def first(s):
    """The first state: nothing runs, nothing was ordered."""
    return z3.And(
        s.newest() == 0,
        every("Ctl", lambda c: s.term(c) == 0),
        every("Vm", lambda v: s.incarnation(v) == 0),
        every("Host", lambda h: z3.And(z3.Not(s.fence(h)), z3.Not(s.attested(h)), s.agent_term(h) == 0)),
        every("Vm Host", lambda v, h: z3.And(z3.Not(s.place(v, h)), z3.Not(s.qemu(v, h)), z3.Not(s.export(v, h)))),
        every("Host Vm", lambda h, v: s.agent_seen(h, v) == 0),
        every("Ctl Vm Host Int", lambda c, v, h, n: z3.And(z3.Not(s.order(c, v, h, n)), z3.Not(s.clear(c, v, h, n)))),
    )


def invariant(s):
    """What holds in every state, and is strong enough to show that it holds in the next."""
    return {
        # I1 as promised: of one VM at most one writer that is not refused.
        "one writer": every(
            "Vm Host Host",
            lambda v, a, b: z3.Implies(
                z3.And(a != b, s.writes(v, a), s.writes(v, b)), z3.Or(s.refused(a), s.refused(b))
            ),
        ),
        # The same for what only may come to write: whatever an agent would still obey.
        "no order beside a writer": every(
            "Ctl Vm Host Int Host",
            lambda c, v, a, n, b: z3.Implies(
                z3.And(a != b, s.may_be_obeyed(c, v, a, n), s.writes(v, b)), z3.Or(s.refused(a), s.refused(b))
            ),
        ),
        "no order beside an order": every(
            "Ctl Vm Host Int Ctl Host Int",
            lambda c, v, a, n, d, b, m: z3.Implies(
                z3.And(a != b, s.may_be_obeyed(c, v, a, n), s.may_be_obeyed(d, v, b, m)),
                z3.Or(s.refused(a), s.refused(b)),
            ),
        ),
        # The journal knows every place.
        "a writer's host is a place": every("Vm Host", lambda v, h: z3.Implies(s.writes(v, h), s.place(v, h))),
        "an order's host is a place": every(
            "Ctl Vm Host Int", lambda c, v, h, n: z3.Implies(s.may_be_obeyed(c, v, h, n), s.place(v, h))
        ),
        # Evidence is true while the incarnation is the newest and its holder is the leader.
        "what is clear writes nothing": every(
            "Ctl Vm Host Int",
            lambda c, v, h, n: z3.Implies(
                z3.And(s.clear(c, v, h, n), s.term(c) == s.newest(), n == s.incarnation(v)), z3.Not(s.writes(v, h))
            ),
        ),
        "what is clear obeys nothing": every(
            "Ctl Vm Host Int Ctl Int",
            lambda c, v, h, n, d, m: z3.Implies(
                z3.And(s.clear(c, v, h, n), s.term(c) == s.newest(), n == s.incarnation(v)),
                z3.Not(s.may_be_obeyed(d, v, h, m)),
            ),
        ),
        "evidence is from a leader": every(
            "Ctl Vm Host Int", lambda c, v, h, n: z3.Implies(s.clear(c, v, h, n), s.term(c) > 0)
        ),
        "evidence is of no later incarnation": every(
            "Ctl Vm Host Int",
            lambda c, v, h, n: z3.Implies(z3.And(s.clear(c, v, h, n), s.term(c) == s.newest()), n <= s.incarnation(v)),
        ),
        "a fence that is kept is in force": every("Host", lambda h: z3.Implies(s.fence(h), s.refused(h))),
        "who is attested off writes nothing": every(
            "Vm Host", lambda v, h: z3.Implies(s.attested(h), z3.Not(s.writes(v, h)))
        ),
        "who is attested off obeys nothing": every(
            "Ctl Vm Host Int", lambda c, v, h, n: z3.Implies(s.attested(h), z3.Not(s.may_be_obeyed(c, v, h, n)))
        ),
        "without power nothing writes": every(
            "Vm Host", lambda v, h: z3.Implies(z3.Not(s.up(h)), z3.Not(s.writes(v, h)))
        ),
        # Numbers only rise.
        "nobody is ahead of the newest term": z3.And(
            s.newest() >= 0,
            every("Ctl", lambda c: z3.And(s.term(c) >= 0, s.term(c) <= s.newest())),
            every("Host", lambda h: s.agent_term(h) <= s.newest()),
        ),
        "a term is of one controller": every(
            "Ctl Ctl", lambda c, d: z3.Implies(z3.And(s.term(c) == s.term(d), s.term(c) > 0), c == d)
        ),
        "commands are from a leader": every(
            "Ctl Vm Host Int", lambda c, v, h, n: z3.Implies(s.order(c, v, h, n), s.term(c) > 0)
        ),
        # A restored journal may be behind the former one's commands; the present leader is never behind itself.
        "orders of now are of no later incarnation": every(
            "Ctl Vm Host Int",
            lambda c, v, h, n: z3.Implies(
                z3.And(s.order(c, v, h, n), s.term(c) == s.newest()), n <= s.incarnation(v)
            ),
        ),
    }


# ---------------------------------------------------------------------------------------------------------------- steps
# A step is a function of the rules, the state before, and what it is about. It returns when it may be taken, and the state
# after. What nobody can prevent (a QEMU dies, power is lost, somebody claims something) may be taken at any time.


def in_office(rules, s, c):
    """The journal accepts a record only from the leader: an append is compared with the newest epoch."""
    return z3.And(s.term(c) > 0, rules.keeps("one-in-office", s.term(c) == s.newest()))


def nothing_on_its_way(rules, s, v, h):
    """No order for the VM can still be obeyed there: each has expired, regardless of its sender."""
    return rules.keeps(
        "wait-for-orders",
        every("Ctl Int", lambda d, m: z3.Implies(s.order(d, v, h, m), s.late(d, v, h, m))),
    )


def gone(rules, s, v, h):
    """What a look that sees everything calls 'not there'."""
    return z3.And(z3.Not(s.qemu(v, h)), rules.keeps("exports-write", z3.Not(s.export(v, h))))


def take_office(rules, s, c):
    """A controller starts, or another takes over; the journal is whole."""
    return s.term(c) == 0, s.but(term=at(s.term, c, to=s.newest() + 1), newest=lambda: s.newest() + 1)


def take_office_on_a_backup(rules, s, c, old, any_newest):
    """`serve --restored`: the journal is a backup and says whatever it says (`old`). Its places are not all, its fences and
    attestations may have ended. So every host is a place of every VM until it was heard, no fence and no attestation counts,
    and the new journal's terms are above all former ones."""
    term = s.newest() + 1 if rules.keeps("restored-takes-new-term") else any_newest
    no = lambda *_: z3.BoolVal(False)
    return z3.And(s.term(c) == 0, term > 0, every("Vm", lambda v: old.incarnation(v) >= 0)), s.but(
        term=at(s.term, c, to=term),
        newest=lambda: term,
        place=(lambda *_: z3.BoolVal(True)) if rules.keeps("census-first") else old.place,
        incarnation=old.incarnation,
        last=old.last,
        fence=no if rules.keeps("restored-fences-unproven") else old.fence,
        attested=no,
    )


def claim(rules, s, v, h):
    """Somebody says that the VM runs there: another host's agent, a migration, an operator. It may be true."""
    replaced = lambda w, g: z3.If(w == v, g == h, s.place(w, g))
    return z3.BoolVal(True), s.but(place=at(s.place, v, h, to=z3.BoolVal(True)) if rules.keeps("claim-only-adds") else replaced)


def agent_looks(rules, s, c, v, h, machine, sees):
    """The agent at the host's address is asked whether the VM runs there; it is called clear if the agent could see that
    it does not. From then on the agent refuses former terms and what was ordered up to this incarnation."""
    meant = rules.keeps("same-machine", machine == h)
    found_none = z3.Implies(sees, gone(rules, s, v, machine))
    hears = s.term(c) >= s.agent_term(machine)
    n = s.incarnation(v)
    void = z3.BoolVal(rules.keeps("orders-become-void"))
    return z3.And(
        in_office(rules, s, c), s.up(machine), hears, meant, found_none, rules.keeps("full-sight", sees)
    ), s.but(
        agent_term=at(s.agent_term, machine, to=s.term(c)),
        agent_seen=at(s.agent_seen, machine, v, to=z3.If(void, most(n, s.agent_seen(machine, v)), s.agent_seen(machine, v))),
        clear=at(s.clear, c, v, h, n, to=z3.BoolVal(True)),
    )


def sibling_kills(rules, s, c, v, h):
    """Over SSH, without the agent: QEMU is killed, its exports are ended, both verified gone."""
    export = at(s.export, v, h, to=z3.BoolVal(False)) if rules.keeps("exports-write") else s.export
    return z3.And(in_office(rules, s, c), s.up(h), nothing_on_its_way(rules, s, v, h)), s.but(
        qemu=at(s.qemu, v, h, to=z3.BoolVal(False)),
        export=export,
        clear=at(s.clear, c, v, h, s.incarnation(v), to=z3.BoolVal(True)),
    )


def nobody_could_tell(rules, s, c, v, h):
    """A look ended with a timeout, a refusal, an odd answer. Nothing follows."""
    if rules.keeps("unknown-is-not-dead"):
        return in_office(rules, s, c), s
    return in_office(rules, s, c), s.but(clear=at(s.clear, c, v, h, s.incarnation(v), to=z3.BoolVal(True)))


def human_attests(rules, s, c, h):
    """A human says that the host is off, and is right. It counts once every order on its way is past its time."""
    waited = every("Vm", lambda v: nothing_on_its_way(rules, s, v, h))
    return z3.And(in_office(rules, s, c), z3.Not(s.up(h)), waited), s.but(attested=at(s.attested, h, to=z3.BoolVal(True)))


def word_counts(rules, s, c, v, h):
    """The human's word is evidence for a VM on that host."""
    return z3.And(in_office(rules, s, c), s.attested(h)), s.but(
        clear=at(s.clear, c, v, h, s.incarnation(v), to=z3.BoolVal(True))
    )


def host_is_heard(rules, s, h):
    """A host answers: the outage is over, and with it the human's word."""
    return s.up(h), s.but(attested=at(s.attested, h, to=z3.BoolVal(False)))


def place_is_forgotten(rules, s, c, v, h):
    """What is clear is no place any more."""
    return z3.And(in_office(rules, s, c), s.clear(c, v, h, s.incarnation(v))), s.but(
        place=at(s.place, v, h, to=z3.BoolVal(False))
    )


def known_clear(rules, s, c, v, h):
    """The controller holds evidence for this host, and for the newest incarnation."""
    if rules.keeps("evidence-has-incarnation"):
        return s.clear(c, v, h, s.incarnation(v))
    return exists("Int", lambda n: s.clear(c, v, h, n))


def start_is_ordered(rules, s, c, v, h):
    """The permit: every other place is clear or fenced. The intent makes the host a place, then the order is sent."""
    n = s.incarnation(v) + 1
    counts = lambda g: z3.Or(z3.BoolVal(False) if rules.keeps("every-place") else g != s.last(v))
    proven = every(
        "Host",
        lambda g: z3.Implies(z3.And(g != h, s.place(v, g)), z3.Or(counts(g), known_clear(rules, s, c, v, g), s.fence(g))),
    )
    # Who is attested off is given nothing before it was heard.
    off = rules.keeps("word-for-one-outage", z3.Not(s.attested(h)))
    return z3.And(in_office(rules, s, c), proven, off), s.but(
        incarnation=at(s.incarnation, v, to=n),
        last=at(s.last, v, to=h),
        place=at(s.place, v, h, to=z3.BoolVal(True)) if rules.keeps("intent-first") else s.place,
        order=at(s.order, c, v, h, n, to=z3.BoolVal(True)),
        late=at(s.late, c, v, h, n, to=z3.BoolVal(False)),
    )


def order_gets_late(rules, s, c, v, h, n):
    return z3.BoolVal(True), s.but(late=at(s.late, c, v, h, n, to=z3.BoolVal(True)))


def agent_starts(rules, s, c, v, h, n, machine, exports):
    """An order arrives, whenever, wherever, how often: the agent judges it, remembers it, then starts QEMU, and a target if
    its volume needs one."""
    return z3.And(
        s.order(c, v, h, n),
        s.up(machine),
        rules.keeps("order-names-host", machine == h),
        rules.keeps("orders-expire", z3.Not(s.late(c, v, h, n))),
        rules.keeps("agent-keeps-incarnation", n > s.agent_seen(machine, v)),
        rules.keeps("agent-keeps-epoch", s.term(c) >= s.agent_term(machine)),
        z3.Not(s.qemu(v, machine)),
    ), s.but(
        qemu=at(s.qemu, v, machine, to=z3.BoolVal(True)),
        export=at(s.export, v, machine, to=z3.Or(exports, s.export(v, machine))),
        agent_term=at(s.agent_term, machine, to=most(s.term(c), s.agent_term(machine))),
        agent_seen=at(s.agent_seen, machine, v, to=most(n, s.agent_seen(machine, v))),
    )


def agent_restarts(rules, s, h):
    """What it remembers is on its disk."""
    if rules.keeps("agent-remembers"):
        return z3.BoolVal(True), s
    nothing = lambda part: lambda g, *rest: z3.If(g == h, z3.IntVal(0), part(g, *rest))
    return z3.BoolVal(True), s.but(agent_term=nothing(s.agent_term), agent_seen=nothing(s.agent_seen))


def qemu_ends(rules, s, v, h):
    """By itself, by its guest, by an operator's stop. Its target may go on writing."""
    return s.qemu(v, h), s.but(qemu=at(s.qemu, v, h, to=z3.BoolVal(False)))


def export_ends(rules, s, v, h):
    return s.export(v, h), s.but(export=at(s.export, v, h, to=z3.BoolVal(False)))


def power_is_lost(rules, s, h):
    none = lambda part: lambda v, g: z3.And(part(v, g), g != h)
    return s.up(h), s.but(up=at(s.up, h, to=z3.BoolVal(False)), qemu=none(s.qemu), export=none(s.export))


def power_is_back(rules, s, h):
    """Nobody need have heard it yet."""
    return z3.Not(s.up(h)), s.but(up=at(s.up, h, to=z3.BoolVal(True)))


def storage_is_fenced(rules, s, c, h):
    """The storage refuses the host, was read back, and the fence is kept."""
    refused = at(s.refused, h, to=z3.BoolVal(True)) if rules.keeps("fence-read-back") else s.refused
    return in_office(rules, s, c), s.but(refused=refused, fence=at(s.fence, h, to=z3.BoolVal(True)))


def stranger_fences(rules, s, h):
    """An entry of another program or of a stale leader: the proof does not rely on it."""
    return z3.BoolVal(True), s.but(refused=at(s.refused, h, to=z3.BoolVal(True)))


def fence_is_lifted(rules, s, c, h):
    """Of every VM either nothing is left there, or nothing is left anywhere else."""
    clean = every(
        "Vm Host",
        lambda v, g: z3.Or(
            g == h,
            known_clear(rules, s, c, v, h),
            z3.Not(s.place(v, h)),
            known_clear(rules, s, c, v, g),
            z3.Not(s.place(v, g)),
        ),
    )
    return z3.And(in_office(rules, s, c), rules.keeps("lift-when-clean", clean)), s.but(
        refused=at(s.refused, h, to=z3.BoolVal(False)), fence=at(s.fence, h, to=z3.BoolVal(False))
    )


STEPS = {
    take_office: "Ctl",
    take_office_on_a_backup: "Ctl Backup Int",
    claim: "Vm Host",
    agent_looks: "Ctl Vm Host Host Bool",
    sibling_kills: "Ctl Vm Host",
    nobody_could_tell: "Ctl Vm Host",
    human_attests: "Ctl Host",
    word_counts: "Ctl Vm Host",
    host_is_heard: "Host",
    place_is_forgotten: "Ctl Vm Host",
    start_is_ordered: "Ctl Vm Host",
    order_gets_late: "Ctl Vm Host Int",
    agent_starts: "Ctl Vm Host Int Host Bool",
    agent_restarts: "Host",
    qemu_ends: "Vm Host",
    export_ends: "Vm Host",
    power_is_lost: "Host",
    power_is_back: "Host",
    storage_is_fenced: "Ctl Host",
    stranger_fences: "Host",
    fence_is_lifted: "Ctl Host",
}


# ---------------------------------------------------------------------------------------------------------------- proof


def about(step):
    """Whatever the step is about."""
    return [State.any("old_") if sort == "Backup" else some(sort)[0] for sort in STEPS[step].split()]


class Search:
    """Looks for a state that keeps the invariant, and a step that leads out of it."""

    def __init__(self):
        self.before = State.any()
        self.solver = solver(*invariant(self.before).values())

    def broken(self, rules, step):
        """Each part of the invariant that the step breaks, with z3's answer, and the counterexample in words if it has one."""
        params = about(step)
        guard, after = step(rules, self.before, *params)
        for name, holds in invariant(after).items():
            self.solver.push()
            self.solver.add(guard, z3.Not(holds))
            answer = self.solver.check()
            found = tell(self.solver.model(), step, name, self.before, params) if answer == z3.sat else None
            self.solver.pop()
            if answer != z3.unsat:
                yield name, answer, found


def solver(*claims):
    made = z3.Solver()
    made.set("timeout", PATIENCE_MS, "random_seed", 0)
    made.add(*claims)
    return made


def ask(*claims):
    """Whether all of this can be: sat, unsat or unknown."""
    return solver(*claims).check()


def tell(model, step, name, s, params):
    """The counterexample in words. z3 names a handful of things that are enough for it."""
    there, called = {}, {}
    for sort, prefix in (("Host", "host"), ("Vm", "vm"), ("Ctl", "controller")):
        there[sort] = model.get_universe(SORTS[sort]) or []
        called |= {str(thing): f"{prefix}-{n + 1}" for n, thing in enumerate(there[sort])}
    value = lambda expr: model.eval(expr, model_completion=True)
    word = lambda thing: called.get(str(thing), str(thing))
    # Of all numbers those that the incarnations and the step name.
    told = [s.incarnation(v) for v in there["Vm"]] + [p for p in params if isinstance(p, z3.ArithRef)]
    there["Int"] = [z3.IntVal(n) for n in sorted({value(number).as_long() for number in told})]
    words = []
    for part, (of, says) in STATE.items():
        for here in itertools.product(*(there[sort] for sort in of.split())):
            got = value(s.parts[part](*here))
            if z3.is_false(got) or (says == "Int" and got.as_long() == 0):
                continue
            # Of what was never ordered it does not matter whether it is late.
            if part == "late" and z3.is_false(value(s.order(*here))):
                continue
            says_that = "" if z3.is_true(got) else f"={word(got)}"
            words.append(f"{part}({', '.join(word(thing) for thing in here)}){says_that}")
    given = ", ".join("a backup" if isinstance(p, State) else word(value(p)) for p in params)
    return f"    before  {' '.join(words)}\n    step    {step.__name__}({given})\n    breaks  {name}"


def prove(search):
    """Initiation, consecution, and that the invariant is what was promised."""
    s, bad = search.before, 0
    for name, holds in invariant(s).items():
        if (answer := ask(first(s), z3.Not(holds))) != z3.unsat:
            print(f"NOT PROVEN: the first state keeps '{name}': z3 says {answer}")
            bad += 1
    for step in STEPS:
        for name, answer, found in search.broken(Rules(), step):
            print(f"NOT PROVEN: {step.__name__} keeps '{name}': z3 says {answer}\n{found or ''}")
            bad += 1
    # At the moment of a start: whatever else of the VM may write is refused by its storage, or the host itself is.
    c, v, h, n, g = some("Ctl Vm Host Int Host")
    beside = z3.And(s.may_be_obeyed(c, v, h, n), g != h, s.writes(v, g), z3.Not(s.refused(g)), z3.Not(s.refused(h)))
    if (answer := ask(*invariant(s).values(), beside)) != z3.unsat:
        print(f"NOT PROVEN: nothing is started beside a writer: z3 says {answer}")
        bad += 1
    print(f"{len(invariant(s))} invariants, {len(STEPS)} steps, any number of controllers, hosts and VMs: "
          f"{'proven' if not bad else f'{bad} NOT PROVEN'}")
    return bad == 0


def sabotage(search, rule):
    """The proof without one rule: the counterexample in words, or None if nothing notices."""
    for step in STEPS:
        rules = Rules(rule)
        step(rules, search.before, *about(step))
        if rule in rules.asked and (found := next((found for _, _, found in search.broken(rules, step) if found), None)):
            return found
    return None


# -------------------------------------------------------------------------------------------------------------- stories
# What has to be possible. A proof of rules that forbid everything shows nothing.


a, b, c = HOSTS = z3.Consts("a b c", SORTS["Host"])
one, two = CONTROLLERS = z3.Consts("one two", SORTS["Ctl"])
vm = z3.Const("vm", SORTS["Vm"])


def stories():
    yes, no = z3.BoolVal(True), z3.BoolVal(False)
    runs_on_a = [
        (take_office, one),
        (start_is_ordered, one, vm, a),
        (agent_starts, one, vm, a, z3.IntVal(1), a, yes),
    ]
    starts_on_b = lambda c, n: [
        (start_is_ordered, c, vm, b),
        (agent_starts, c, vm, b, z3.IntVal(n), b, no),
    ]
    return {
        "an unreachable host is fenced by its storage, its VM starts elsewhere, it returns to service": runs_on_a
        + [(storage_is_fenced, one, a)]
        + starts_on_b(one, 2)
        + [(order_gets_late, one, vm, a, z3.IntVal(1)), (sibling_kills, one, vm, a), (fence_is_lifted, one, a)],
        "a host loses its power, a human says so, its VM starts elsewhere and back": runs_on_a
        + [(order_gets_late, one, vm, a, z3.IntVal(1)), (power_is_lost, a), (human_attests, one, a), (word_counts, one, vm, a)]
        + starts_on_b(one, 2)
        + [(power_is_back, a), (host_is_heard, a), (qemu_ends, vm, b), (agent_looks, one, vm, b, b, yes)]
        + [(start_is_ordered, one, vm, a), (agent_starts, one, vm, a, z3.IntVal(3), a, no)],
        "a backup is restored, all are asked, and the VM that ran starts elsewhere once it is gone": runs_on_a
        + [(take_office_on_a_backup, two, State.any("old_"), z3.IntVal(0))]
        + [(qemu_ends, vm, a), (export_ends, vm, a)]
        + [(agent_looks, two, vm, host, host, yes) for host in HOSTS]
        + [(start_is_ordered, two, vm, b)],
    }


def possible(story):
    s = State.any()
    claims = [
        first(s),
        z3.Distinct(*HOSTS),
        z3.Distinct(*CONTROLLERS),
        every("Host", lambda h: z3.And(z3.Or(*(h == known for known in HOSTS)), s.up(h), z3.Not(s.refused(h)))),
        every("Vm", lambda v: v == vm),
    ]
    for step, *params in story:
        guard, s = step(Rules(), s, *params)
        claims.append(guard)
    return ask(*claims) == z3.sat


def main():
    began = time.monotonic()
    search = Search()
    good = prove(search)
    for name, story in stories().items():
        if not possible(story):
            print(f"NOT POSSIBLE: {name}")
            good = False
    print(f"{len(stories())} stories played")
    noticed = 0
    for rule, words in SABOTAGES.items():
        found = sabotage(search, rule)
        if not found:
            print(f"NOT NOTICED: {rule}: {words}")
            continue
        noticed += 1
        print(f"  {rule}: {words}")
        print(found)
    print(f"{noticed} of {len(SABOTAGES)} sabotages noticed")
    print(f"took {time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0 if good and noticed == len(SABOTAGES) else 1


if __name__ == "__main__":
    sys.exit(main())
