//! The same tiny actor (adds a number, answers the sum) on Ringfence's bus and on its peers.
//!
//! All run on one thread, the one of an actix system: what is compared is the machinery, not the scheduler. Bounded
//! mailboxes where a peer has them, as large as Ringfence's; its default otherwise.

#![allow(missing_docs)]

use std::future::Future;

/// Room in a mailbox: Ringfence's default for its normal lane.
pub const CAPACITY: usize = 4096;

/// One of the compared.
pub trait Peer: Default + 'static {
    /// Its name in the table.
    const NAME: &'static str;
    /// What it sends to an actor through.
    type Ref: Clone + 'static;
    /// Spawns the `n`th actor; it need not run yet.
    fn spawn(&self, n: u128) -> impl Future<Output = Self::Ref>;
    /// Sends and forgets.
    fn tell(&self, to: &Self::Ref, number: u64) -> impl Future<Output = ()>;
    /// Sends and awaits the sum.
    fn ask(&self, to: &Self::Ref, number: u64) -> impl Future<Output = u64>;
    /// Ends the actor.
    fn stop(&self, actor: Self::Ref);
}

pub mod ringfence_bus {
    use ringfence::{Accepts, Actor, ActorRef, Bus, Ctx, EventHandler, Handler, Kind, Result, event, message};
    use serde::{Deserialize, Serialize};

    #[derive(Debug, Serialize, Deserialize)]
    pub struct Add(pub u64);
    message!(Add, 1 => u64);

    #[derive(Clone, Debug, Serialize, Deserialize)]
    pub struct Added(pub u64);
    event!(Added, "bench.added", 1, |_e| String::new());

    #[derive(Default)]
    pub struct Sum {
        sum: u64,
        listens: bool,
    }

    impl Sum {
        /// One that hears [`Added`].
        pub fn listening() -> Sum {
            Sum { sum: 0, listens: true }
        }
    }

    impl Actor for Sum {
        const KIND: Kind = Kind::new("sum");
        fn accepts(accepts: &mut Accepts<Self>) {
            accepts.message::<Add>().event::<Added>();
        }
        fn started(&mut self, ctx: &mut Ctx<'_, Self>) {
            if self.listens {
                ctx.subscribe::<Added>();
            }
        }
    }

    impl Handler<Add> for Sum {
        type Answer = Result<u64>;
        fn handle(&mut self, add: Add, _: &mut Ctx<'_, Self>) -> Result<u64> {
            self.sum += add.0;
            Ok(self.sum)
        }
    }

    impl EventHandler<Added> for Sum {
        fn on_event(&mut self, added: &Added, _: &mut Ctx<'_, Self>) {
            self.sum += added.0;
        }
    }

    #[derive(Default)]
    pub struct Ringfence(pub Bus);

    impl super::Peer for Ringfence {
        const NAME: &'static str = "ringfence";
        type Ref = ActorRef<Sum>;
        async fn spawn(&self, n: u128) -> ActorRef<Sum> {
            self.0.spawn(uuid::Uuid::from_u128(n), Sum::default).expect("a fresh address")
        }
        async fn tell(&self, to: &ActorRef<Sum>, number: u64) {
            to.tell(Add(number)).expect("room");
        }
        async fn ask(&self, to: &ActorRef<Sum>, number: u64) -> u64 {
            to.ask(Add(number)).await.expect("an answer")
        }
        fn stop(&self, actor: ActorRef<Sum>) {
            actor.stop();
        }
    }
}

pub mod raw_actix {
    use actix::{Actor, Addr, Context, Handler, Message};

    #[derive(Message)]
    #[rtype(u64)]
    pub struct Add(pub u64);

    #[derive(Default)]
    pub struct Sum(u64);

    impl Actor for Sum {
        type Context = Context<Self>;
        fn started(&mut self, ctx: &mut Context<Self>) {
            ctx.set_mailbox_capacity(super::CAPACITY);
        }
    }

    impl Handler<Add> for Sum {
        type Result = u64;
        fn handle(&mut self, add: Add, _: &mut Context<Self>) -> u64 {
            self.0 += add.0;
            self.0
        }
    }

    #[derive(Default)]
    pub struct Actix;

    impl super::Peer for Actix {
        const NAME: &'static str = "actix";
        type Ref = Addr<Sum>;
        async fn spawn(&self, _: u128) -> Addr<Sum> {
            Sum::default().start()
        }
        async fn tell(&self, to: &Addr<Sum>, number: u64) {
            to.do_send(Add(number));
        }
        async fn ask(&self, to: &Addr<Sum>, number: u64) -> u64 {
            to.send(Add(number)).await.expect("an answer")
        }
        fn stop(&self, actor: Addr<Sum>) {
            drop(actor);
        }
    }
}

pub mod on_kameo {
    use kameo::{
        Actor,
        actor::{ActorRef, Spawn},
        mailbox,
        message::{Context, Message},
    };

    pub struct Add(pub u64);

    #[derive(Actor, Default)]
    pub struct Sum(u64);

    impl Message<Add> for Sum {
        type Reply = u64;
        async fn handle(&mut self, add: Add, _: &mut Context<Self, u64>) -> u64 {
            self.0 += add.0;
            self.0
        }
    }

    #[derive(Default)]
    pub struct Kameo;

    impl super::Peer for Kameo {
        const NAME: &'static str = "kameo";
        type Ref = ActorRef<Sum>;
        async fn spawn(&self, _: u128) -> ActorRef<Sum> {
            Sum::spawn_with_mailbox(Sum::default(), mailbox::bounded(super::CAPACITY))
        }
        async fn tell(&self, to: &ActorRef<Sum>, number: u64) {
            to.tell(Add(number)).try_send().expect("room");
        }
        async fn ask(&self, to: &ActorRef<Sum>, number: u64) -> u64 {
            to.ask(Add(number)).await.expect("an answer")
        }
        fn stop(&self, actor: ActorRef<Sum>) {
            actor.kill();
        }
    }
}

pub mod on_ractor {
    use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

    pub enum Add {
        Tell(u64),
        Ask(u64, RpcReplyPort<u64>),
    }

    pub struct Sum;

    #[ractor::async_trait]
    impl Actor for Sum {
        type Msg = Add;
        type State = u64;
        type Arguments = ();
        async fn pre_start(&self, _: ActorRef<Add>, (): ()) -> Result<u64, ActorProcessingErr> {
            Ok(0)
        }
        async fn handle(&self, _: ActorRef<Add>, add: Add, sum: &mut u64) -> Result<(), ActorProcessingErr> {
            match add {
                Add::Tell(number) => *sum += number,
                Add::Ask(number, reply) => {
                    *sum += number;
                    let _ = reply.send(*sum);
                }
            }
            Ok(())
        }
    }

    #[derive(Default)]
    pub struct Ractor;

    impl super::Peer for Ractor {
        const NAME: &'static str = "ractor";
        type Ref = ActorRef<Add>;
        async fn spawn(&self, _: u128) -> ActorRef<Add> {
            Sum::spawn(None, Sum, ()).await.expect("it starts").0
        }
        async fn tell(&self, to: &ActorRef<Add>, number: u64) {
            to.cast(Add::Tell(number)).expect("it lives");
        }
        async fn ask(&self, to: &ActorRef<Add>, number: u64) -> u64 {
            ractor::call!(to, Add::Ask, number).expect("an answer")
        }
        fn stop(&self, actor: ActorRef<Add>) {
            actor.stop(None);
        }
    }
}

pub mod on_xtra {
    use xtra::{Address, Context, Handler, Mailbox};

    pub struct Add(pub u64);

    #[derive(Default, xtra::Actor)]
    pub struct Sum(u64);

    impl Handler<Add> for Sum {
        type Return = u64;
        async fn handle(&mut self, add: Add, _: &mut Context<Self>) -> u64 {
            self.0 += add.0;
            self.0
        }
    }

    #[derive(Default)]
    pub struct Xtra;

    impl super::Peer for Xtra {
        const NAME: &'static str = "xtra";
        type Ref = Address<Sum>;
        async fn spawn(&self, _: u128) -> Address<Sum> {
            xtra::spawn_tokio(Sum::default(), Mailbox::bounded(super::CAPACITY))
        }
        async fn tell(&self, to: &Address<Sum>, number: u64) {
            // Resolves when the message is in the mailbox; the answer is not awaited.
            drop(to.send(Add(number)).detach().await.expect("room"));
        }
        async fn ask(&self, to: &Address<Sum>, number: u64) -> u64 {
            to.send(Add(number)).await.expect("an answer")
        }
        fn stop(&self, actor: Address<Sum>) {
            drop(actor);
        }
    }
}

pub mod tokio_mpsc {
    use tokio::sync::{mpsc, oneshot};

    pub struct Add(u64, Option<oneshot::Sender<u64>>);

    #[derive(Default)]
    pub struct Mpsc;

    impl super::Peer for Mpsc {
        const NAME: &'static str = "tokio mpsc";
        type Ref = mpsc::Sender<Add>;
        async fn spawn(&self, _: u128) -> mpsc::Sender<Add> {
            let (sender, mut receiver) = mpsc::channel::<Add>(super::CAPACITY);
            tokio::task::spawn_local(async move {
                let mut sum = 0;
                while let Some(Add(number, reply)) = receiver.recv().await {
                    sum += number;
                    if let Some(reply) = reply {
                        let _ = reply.send(sum);
                    }
                }
            });
            sender
        }
        async fn tell(&self, to: &mpsc::Sender<Add>, number: u64) {
            let _ = to.try_send(Add(number, None));
        }
        async fn ask(&self, to: &mpsc::Sender<Add>, number: u64) -> u64 {
            let (sender, receiver) = oneshot::channel();
            let _ = to.try_send(Add(number, Some(sender)));
            receiver.await.expect("an answer")
        }
        fn stop(&self, actor: mpsc::Sender<Add>) {
            drop(actor);
        }
    }
}
