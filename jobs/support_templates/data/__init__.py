"""The data of the job: raw tables, the simulated support chat, and the general corpus."""
