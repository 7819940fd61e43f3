"""Beyond one machine: plain sbatch scripts from one small plan, and the same plan as processes.

``plan`` reads the YAML; ``scripts`` renders it; ``rounds`` submits, verifies and resubmits what is
missing; ``local`` runs the same scripts without SLURM; ``queue`` asks SLURM what became of them.
"""

from coarlib.cluster.plan import Environment, Plan, Resources, Step, load_plan, parse_plan

__all__ = ["Environment", "Plan", "Resources", "Step", "load_plan", "parse_plan"]
