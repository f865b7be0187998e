import { Global, Module } from '@nestjs/common';
import { ModelProvidersRepository } from './model-providers.repository';
import { ModelServicesRepository } from './model-services.repository';
import { TextDrivers } from './text-drivers';

/** Model services: sole owner of providers, their sealed credentials and the services on them, and of the drivers that speak to providers. */
@Global()
@Module({
  providers: [ModelProvidersRepository, ModelServicesRepository, TextDrivers],
  exports: [ModelProvidersRepository, ModelServicesRepository, TextDrivers],
})
export class ModelServicesModule {}
