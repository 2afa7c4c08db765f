//! `ringfence-fuzz TARGET FILE...` gives each file to a target: an input that `make fuzz` kept, say.
//! Built by `scripts/fuzz.sh`, with coverage counters, it is libFuzzer instead, and `FUZZ_TARGET` names the target.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    static RUN: std::sync::OnceLock<fn(&[u8])> = std::sync::OnceLock::new();
    let run = RUN.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
        ringfence_fuzz::target(&name).unwrap_or_else(|| panic!("FUZZ_TARGET={name:?} is no target")).run
    });
    run(bytes);
});

#[cfg(not(fuzzing))]
fn main() -> Result<(), String> {
    let mut arguments = std::env::args_os().skip(1);
    let known = || ringfence_fuzz::TARGETS.map(|target| target.name).join(", ");
    let name = arguments.next().unwrap_or_default();
    let target = name.to_str().and_then(ringfence_fuzz::target);
    let target = target.ok_or_else(|| format!("{name:?} is no target: ringfence-fuzz TARGET FILE...; {}", known()))?;
    for file in arguments {
        let bytes = std::fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        (target.run)(&bytes);
    }
    Ok(())
}
