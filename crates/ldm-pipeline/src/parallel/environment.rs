//! Whether this process was started as one of several.

use super::Workers;
use crate::error::Error;

/// By which a launcher tells how many processes it has started: Open MPI; MPICH, Intel MPI and Slurm; MVAPICH.
const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"];

impl Workers {
    /// The processes that `mpirun`, or another launcher of MPI, has started; this one alone if none has.
    ///
    /// # Errors
    /// If there are several and this program was built without the feature `mpi`: they would fight over one run directory.
    pub fn from_environment() -> Result<Self, Error> {
        let size = SIZES
            .iter()
            .find_map(|name| std::env::var(name).ok()?.parse::<usize>().ok());
        match size {
            Some(2..) => connect(),
            _ => Ok(Self::default()),
        }
    }
}

#[cfg(feature = "mpi")]
fn connect() -> Result<Workers, Error> {
    super::mpi::connect()
}

#[cfg(not(feature = "mpi"))]
fn connect() -> Result<Workers, Error> {
    Err(Error::Processes {
        problem: "started as one of several processes by MPI, but built without --features mpi"
            .into(),
        help: "build it with MPI: cargo build --release --features mpi; or start it without mpirun",
    })
}
