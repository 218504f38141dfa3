// SPDX-License-Identifier: GPL-2.0
/* The faults of the lab that only a kernel can have, as lkdtm has them, which Debian's cloud kernel lacks:
 *   insmod labfault.ko fault=hard cpus=1    so many CPUs spin for ever with interrupts off
 *   insmod labfault.ko fault=soft cpus=1    so many CPUs spin for ever, preemption off, interrupts on */
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/preempt.h>

static char *fault = "";
module_param(fault, charp, 0);
static int cpus = 1;
module_param(cpus, int, 0);

static int stuck(void *hard)
{
	if (hard)
		local_irq_disable();
	preempt_disable();
	for (;;)
		cpu_relax();
	return 0;
}

static int __init labfault_init(void)
{
	int cpu, hard = !strcmp(fault, "hard"), left = cpus;

	if (!hard && strcmp(fault, "soft"))
		return -EINVAL;
	/* From the last one down: the CPU of the caller may be among them, and it must start the others first. */
	for (cpu = num_online_cpus() - 1; cpu >= 0 && left > 0; cpu--, left--) {
		struct task_struct *task = kthread_create(stuck, hard ? &fault : NULL, "labfault/%d", cpu);

		if (IS_ERR(task))
			return PTR_ERR(task);
		kthread_bind(task, cpu);
		wake_up_process(task);
	}
	return 0;
}

static void __exit labfault_exit(void)
{
}

module_init(labfault_init);
module_exit(labfault_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("lockups for the laboratory");
