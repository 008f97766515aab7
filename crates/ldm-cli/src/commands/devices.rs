use ldm_pipeline::Error;

use crate::device::BACKENDS;

pub(crate) fn run() -> Result<(), Error> {
    println!("{:10} {:44} in this build", "device", "");
    for backend in &BACKENDS {
        let built = match backend.is_built() {
            true => "yes".into(),
            false => format!("no: cargo build --release --features {}", backend.feature),
        };
        println!("{:10} {:44} {built}", backend.name, backend.description);
    }
    println!("\nA number after a colon picks one of several: --device cuda:1");
    Ok(())
}
