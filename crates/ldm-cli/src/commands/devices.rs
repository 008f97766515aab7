use ldm_pipeline::Error;

use crate::{device::BACKENDS, output::print};

pub(crate) fn run() -> Result<(), Error> {
    print(format_args!("{:10} {:44} in this build", "device", ""))?;
    for backend in &BACKENDS {
        let built = match backend.is_built() {
            true => "yes".into(),
            false => format!("no: cargo build --release --features {}", backend.feature),
        };
        print(format_args!(
            "{:10} {:44} {built}",
            backend.name, backend.description
        ))?;
    }
    print("\nA number after a colon picks one of several: --device cuda:1")?;
    Ok(())
}
