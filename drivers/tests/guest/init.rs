//! Process 1 of a guest that checks its disk: 24 threads, each with one request in flight, past every cache.
//!
//! Each thread owns `SLOTS` blocks and writes them in turn, each with the number of the write. So all that a block may
//! hold is known to the bit: before a write is answered the number before it or its own, afterwards its own alone.
//! After a boot what was written by the boot before is read again. The host reads this on the serial line:
//! `found N N ...` what each thread found last written, `ack N N ...` what was answered so far, `DAMAGE ...`, `ERROR
//! ...`. A separate program, built by `linux_guest.rs`: it needs no C library in the guest.

use std::{
    ffi::{c_char, c_int, c_long, c_ulong, c_void},
    fs::{self, File, OpenOptions},
    io::Write,
    os::{fd::AsRawFd, unix::fs::{FileExt, OpenOptionsExt}},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    thread,
    time::Duration,
};

const THREADS: usize = 24;
const SLOTS: u64 = 16;
const BLOCK: usize = 4096;
const O_DIRECT: c_int = 0o40000;
const FINIT_MODULE: c_long = 313;

unsafe extern "C" {
    fn mount(source: *const c_char, target: *const c_char, kind: *const c_char, flags: c_ulong,
        data: *const c_void) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
}

static ACKED: [AtomicU64; THREADS] = [const { AtomicU64::new(0) }; THREADS];

#[repr(align(4096))]
struct Block([u8; BLOCK]);

impl Block {
    fn of(slot: u64, number: u64) -> Block {
        let mut block = Block([0; BLOCK]);
        for (i, word) in block.0.chunks_exact_mut(8).enumerate() {
            let value = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ slot.rotate_left(40) ^ (i as u64);
            word.copy_from_slice(&value.to_le_bytes());
        }
        block.0[..8].copy_from_slice(&number.to_le_bytes());
        block
    }

    /// The number of the write that it is; `None` if it is none that this slot ever had.
    fn number(&self, slot: u64) -> Option<u64> {
        if self.0 == [0; BLOCK] {
            return Some(0);
        }
        let number = u64::from_le_bytes(self.0[..8].try_into().unwrap());
        (Block::of(slot, number).0 == self.0).then_some(number)
    }
}

fn say(line: String) {
    let mut serial = OpenOptions::new().write(true).open("/dev/ttyS0").unwrap();
    serial.write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn numbers(word: &str, of: impl Iterator<Item = u64>) -> String {
    of.fold(word.to_owned(), |line, n| line + " " + &n.to_string())
}

/// What this slot holds once `last` writes of its thread were done: they go through the slots in turn.
fn expected(slot: u64, last: u64) -> u64 {
    let back = (last + SLOTS - slot) % SLOTS;
    last.saturating_sub(back) * u64::from(last >= back)
}

struct Disk {
    file: File,
    thread: u64,
}

impl Disk {
    fn read(&self, slot: u64) -> u64 {
        let (mut block, at) = (Block([0xaa; BLOCK]), self.thread * SLOTS + slot);
        if let Err(error) = self.file.read_exact_at(&mut block.0, at * BLOCK as u64) {
            say(format!("ERROR read {at}: {error}"));
            loop {
                thread::park();
            }
        }
        block.number(at).unwrap_or_else(|| {
            say(format!("DAMAGE block {at}: {:02x?} was never written", &block.0[..16]));
            u64::MAX
        })
    }

    fn check(&self, slot: u64, last: u64) {
        let (is, should) = (self.read(slot), expected(slot, last));
        if is != should {
            say(format!("DAMAGE thread {} slot {slot}: write {is} instead of {should}", self.thread));
        }
    }

    fn write(&self, number: u64) {
        let at = self.thread * SLOTS + number % SLOTS;
        if let Err(error) = self.file.write_all_at(&Block::of(at, number).0, at * BLOCK as u64) {
            say(format!("ERROR write {at}: {error}"));
            loop {
                thread::park();
            }
        }
    }

    /// The last write of the boots before; all others have to be there too.
    fn found(&self) -> u64 {
        let last = (0..SLOTS).map(|slot| self.read(slot)).max().unwrap();
        (0..SLOTS).for_each(|slot| self.check(slot, last));
        last
    }

    fn work(&self, mut last: u64) {
        loop {
            last += 1;
            self.write(last);
            ACKED[self.thread as usize].store(last, SeqCst);
            // Any of its slots, not always the newest.
            self.check(last.wrapping_mul(7) % SLOTS, last);
        }
    }
}

fn main() {
    unsafe { mount(c"dev".as_ptr(), c"/dev".as_ptr(), c"devtmpfs".as_ptr(), 0, std::ptr::null()) };
    std::panic::set_hook(Box::new(|panic| say(format!("ERROR {panic}"))));
    let mut modules: Vec<_> = fs::read_dir("/modules").unwrap().map(|entry| entry.unwrap().path()).collect();
    modules.sort();
    for module in modules {
        let file = File::open(&module).unwrap();
        let loaded = unsafe { syscall(FINIT_MODULE, c_long::from(file.as_raw_fd()), c"".as_ptr(), 0 as c_long) };
        assert_eq!(loaded, 0, "{module:?}: {}", std::io::Error::last_os_error());
    }
    let open = || OpenOptions::new().read(true).write(true).custom_flags(O_DIRECT).open("/dev/vda");
    let disks: Vec<Disk> = (0..THREADS as u64)
        .map(|thread| loop {
            match open() {
                Ok(file) => break Disk { file, thread },
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        })
        .collect();
    let found: Vec<u64> = thread::scope(|scope| {
        let searches: Vec<_> = disks.iter().map(|disk| scope.spawn(|| disk.found())).collect();
        searches.into_iter().map(|search| search.join().unwrap()).collect()
    });
    say(numbers("found", found.iter().copied()));
    thread::scope(|scope| {
        for (disk, last) in disks.iter().zip(found) {
            ACKED[disk.thread as usize].store(last, SeqCst);
            scope.spawn(move || disk.work(last));
        }
        loop {
            say(numbers("ack", ACKED.iter().map(|acked| acked.load(SeqCst))));
            thread::sleep(Duration::from_millis(100));
        }
    });
}
