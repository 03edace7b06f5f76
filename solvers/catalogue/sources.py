"""Papers that several rows cite."""

KARRAS = "Karras et al. 2022 (arXiv 2206.00364)"
LU = "Lu et al. 2022 (arXiv 2206.00927)"
LU_PP = "Lu et al. 2022b (arXiv 2211.01095)"
