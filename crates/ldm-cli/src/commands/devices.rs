use ldm_pipeline::{Error, hardware::kernels};

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
    print(format_args!(
        "\nKernels of flex on this machine: {} (LDM_KERNELS lowers it)",
        kernels()
    ))?;
    print("A number after a colon picks one of several: --device cuda:1")?;
    Ok(())
}
